import numpy as np
import pytest
from PIL import Image
from torchvision import models
from torchvision.transforms import functional

from featurestore.errors import IdentityError, InvalidInputError
from featurestore.networks.preprocess import preprocess
from featurestore.networks.sources.presets import resolve_transform
from featurestore.policy import DecodePolicy

ALEXNET = models.AlexNet_Weights.IMAGENET1K_V1
DETECTION = models.detection.SSD300_VGG16_Weights.COCO_V1
SEGMENTATION = models.segmentation.FCN_ResNet50_Weights.DEFAULT


def resolve(weights, **changes):
    return resolve_transform(weights.transforms(), preprocess(**changes).to_json(), None, "net")


def picture(width=301, height=207):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_only_what_was_changed_is_in_the_request():
    assert preprocess().to_json() == {}
    changed = preprocess(crop=200, mean=(0, 0.5, 1), frame=2, alpha="white")
    assert changed.to_json() == {
        "crop": 200,
        "mean": [0.0, 0.5, 1.0],
        "decode": {"alpha": "white", "frame": 2},
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"resize": 0},
        {"resize": (1, 2, 3)},
        {"crop": 2.5},
        {"interpolation": "bilinaer"},
        {"center_crop": 1},
        {"exif": "maybe"},
        {"frame": -1},
        {"size": 64, "crop": 32},
        {"crop": 64, "center_crop": False},
        {"id": "v1"},
    ],
)
def test_what_means_nothing_is_refused(wrong):
    with pytest.raises(InvalidInputError):
        preprocess(**wrong)


def test_a_callable_cannot_be_adapted():
    with pytest.raises(InvalidInputError, match="resize"):
        preprocess(lambda image: image, id="v1", resize=3)


def test_the_published_transform_itself_is_called():
    transform = resolve(ALEXNET)
    expected = ALEXNET.transforms()(picture()).numpy()
    np.testing.assert_array_equal(transform(picture()), expected)
    assert transform.shape == (3, 224, 224)


def test_every_parameter_of_the_published_transform_is_known():
    assert resolve(ALEXNET).to_json() == {
        "decode": DecodePolicy().to_json(),
        "transform": {
            "class": "torchvision.ImageClassification",
            "antialias": True,
            "crop_size": [224],
            "interpolation": "bilinear",
            "mean": [0.485, 0.456, 0.406],
            "resize_size": [256],
            "std": [0.229, 0.224, 0.225],
        },
    }


def test_a_change_applies_and_is_known():
    published = ALEXNET.transforms()
    transform = resolve(ALEXNET, resize=300, crop=(120, 100), interpolation="bicubic")
    resized = functional.resize(picture(), [300], functional.InterpolationMode.BICUBIC)
    cropped = functional.to_tensor(functional.center_crop(resized, [120, 100]))
    expected = functional.normalize(cropped, published.mean, published.std)
    np.testing.assert_array_equal(transform(picture()), expected.numpy())
    assert transform.parameters["crop_size"] == [120, 100]
    assert transform.parameters["interpolation"] == "bicubic"


def test_without_central_crop_the_whole_picture_is_squeezed():
    transform = resolve(ALEXNET, center_crop=False, mean=(0, 0, 0), std=(1, 1, 1))
    squeezed = functional.to_tensor(functional.resize(picture(), [224, 224]))
    np.testing.assert_array_equal(transform(picture()), squeezed.numpy())
    assert (
        transform.parameters == resolve(ALEXNET, size=224, mean=(0, 0, 0), std=(1, 1, 1)).parameters
    )
    assert resolve(ALEXNET, center_crop=False, resize=(64, 32)).shape == (3, 64, 32)


@pytest.mark.parametrize("weights", [DETECTION, SEGMENTATION])
def test_a_preset_without_a_fixed_size_asks_for_one(weights):
    with pytest.raises(InvalidInputError, match=r"size=\(height, width\)"):
        resolve(weights)
    assert resolve(weights, size=(64, 96)).shape == (3, 64, 96)
    assert resolve(weights, size=64).shape == (3, 64, 64)


def test_what_a_preset_cannot_honour_is_an_error():
    for weights, change in [
        (DETECTION, {"mean": (0, 0, 0)}),
        (DETECTION, {"resize": 64}),
        (SEGMENTATION, {"crop": 64}),
        (SEGMENTATION, {"center_crop": False}),
    ]:
        with pytest.raises(InvalidInputError, match=next(iter(change))):
            resolve(weights, size=64, **change) if "mean" in change else resolve(weights, **change)


def test_an_unknown_transform_without_an_id_is_refused():
    with pytest.raises(IdentityError, match="id="):
        preprocess(lambda image: image)
    with pytest.raises(IdentityError):
        resolve_transform(lambda _image: np.zeros((3, 4, 4)), {}, None, "net")


def test_a_transform_of_torchvision_is_known_by_its_parameters():
    own = preprocess(ALEXNET.transforms())
    transform = resolve_transform(None, own.to_json(), own.transform, "net")
    assert transform.parameters == resolve(ALEXNET).parameters


def test_transforms_run_on_the_cpu_whatever_the_default_device_is():
    import torch

    with torch.device("meta"):
        assert np.isfinite(resolve(ALEXNET)(picture())).all()
