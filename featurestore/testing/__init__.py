"""What tests of sources and stores build on; shipped, so that plug-ins can use it too."""
