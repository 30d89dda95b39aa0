import builtins

import pytest
from torchvision import models as torchvision_models

from featurestore.errors import InvalidInputError, ModelNotFoundError
from featurestore.networks.listing import choose_module, models, modules
from featurestore.testing.tiny import TinyNetwork, tiny_network


def answers(*words):
    left = list(words)
    return lambda _question: left.pop(0)


def test_every_image_model_of_torchvision_is_listed_and_no_other():
    listed = set(models(source="torchvision"))
    assert {"alexnet", "vit_b_16", "fcn_resnet50", "ssd300_vgg16", "quantized_resnet18"} <= listed
    assert not {"r3d_18", "mvit_v1_b", "s3d", "raft_small", "swin3d_t"} & listed
    everything = set(torchvision_models.list_models())
    assert listed < everything
    assert len(everything - listed) == 11


def test_a_model_that_somebody_registers_appears_by_itself():
    @torchvision_models._api.register_model(name="tiny_of_mine")
    def build(*, weights=None, progress=True, **kwargs):
        return TinyNetwork(**kwargs)

    try:
        assert "tiny_of_mine" in models()
        with pytest.raises(InvalidInputError, match="publishes no preprocessing"):
            modules("tiny_of_mine")
    finally:
        torchvision_models._api.BUILTIN_MODELS.pop("tiny_of_mine")


def test_models_can_be_narrowed_and_print_well():
    assert models(pattern="alex") == ("alexnet",)
    assert models(pattern="vgg??") == ("vgg11", "vgg13", "vgg16", "vgg19")
    assert repr(models(pattern="alex")).splitlines()[:2] == [
        "<featurestore.ModelList: 1 models>",
        "alexnet",
    ]
    assert len(repr(models()).splitlines()) > 100
    with pytest.raises(ModelNotFoundError, match="Did you mean 'torchvision'"):
        models(source="torchvisio")


def test_the_table_says_what_a_module_is_and_what_it_costs():
    table = modules("alexnet")
    conv = table["features.10"]
    assert (conv.type, conv.dims, conv.shape) == ("Conv2d", ("channel", "y", "x"), (256, 13, 13))
    assert (conv.n_calls, conv.n_values, conv.nbytes) == (1, 43_264, 173_056)
    assert table.names[:3] == ("", "features", "features.0")
    assert len(table) == len(list(table)) == 24
    assert table[2] is table["features.0"]
    text = repr(table).splitlines()
    assert text[0] == "<featurestore.ModuleTable: alexnet, 24 modules>"
    head = text[1].split()
    assert head == ["name", "type", "dims", "shape", "calls", "values", "bytes/image"]
    (line,) = (line for line in text if line.startswith("features.10 "))
    expected = "features.10 Conv2d channel, y, x 256 x 13 x 13 1 43,264 173 kB"
    assert " ".join(line.split()) == expected


def test_the_table_takes_a_wrapped_network():
    assert modules(tiny_network())["classifier"].shape == (10,)
    with pytest.raises(InvalidInputError, match=r"fs\.wrap"):
        modules(TinyNetwork())


def test_what_cannot_be_kept_says_why():
    table = modules("googlenet", preprocess=None)
    aux = table["aux1"]
    assert (aux.problem, aux.n_values) == ("never called", 0)
    assert "(never called)" in repr(table)


def test_an_unknown_name_suggests_near_misses():
    with pytest.raises(ModelNotFoundError, match="Did you mean 'alexnet'"):
        modules("alexnett")
    with pytest.raises(KeyError, match=r"Did you mean 'features\.10'"):
        modules("alexnet")["feature.10"]


def test_a_module_is_chosen_by_number_or_by_name():
    shown = []
    network = tiny_network()
    assert choose_module(network, ask=answers("2"), show=shown.append) == "features.0"
    assert choose_module(network, ask=answers(" features.3 "), show=shown.append) == "features.3"
    assert choose_module(network, ask=answers("features.0@0"), show=shown.append) == "features.0@0"
    head, *lines = shown[0].splitlines()
    assert head.split()[:2] == ["module", "type"]
    numbers = [int(line.split()[0]) for line in lines]
    assert numbers == list(range(len(lines)))
    assert lines[0].split()[1:3] == ["tiny", "TinyNetwork"]
    assert lines[2].index("0 ", 4) > lines[1].index("features")


def test_a_wrong_answer_is_explained_and_asked_again():
    shown = []
    ask = answers("feature.0", "99", "", "features.[", "classifier")
    assert choose_module(tiny_network(), ask=ask, show=shown.append) in ("classifier", "")
    assert "Did you mean 'features.0'" in shown[1]
    assert "0 to 8" in shown[2]


def test_asking_uses_the_terminal_by_default(monkeypatch, capsys):
    monkeypatch.setattr(builtins, "input", answers("classifier"))
    assert choose_module(tiny_network()) == "classifier"
    assert "classifier" in capsys.readouterr().out
