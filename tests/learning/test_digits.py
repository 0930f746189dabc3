"""The canonical nine: data, the identity that the walk follows, fair walks, and the measurement around them."""

import gzip
import json
import math
import struct

import numpy as np
import pytest
import torch

from dpg_robot.learning.digits.experiment import (
    METRICS,
    STARTS,
    STEP_SIZES,
    CanonicalNineSettings,
    count_work,
    draw_starts,
    measure_canonical_nine,
    nearest_distance,
    summary,
)
from dpg_robot.learning.digits.figure import draw_canonical_nine
from dpg_robot.learning.digits.images import DigitFileError, DigitImages, load_mnist, load_scikit_digits, split_images
from dpg_robot.learning.digits.networks import (
    NOTHING,
    ImageClassifier,
    ImageDenoiser,
    NetworkSettings,
    train_classifier,
    train_denoiser,
)
from dpg_robot.learning.digits.walk import (
    WalkSettings,
    clean_classifier_direction,
    denoiser_direction,
    noised_classifier_direction,
    walk,
)

SMALL = NetworkSettings(
    width=64, blocks=2, dropout=0.0, training_steps=600, plain_training_steps=300, sigma_low=1.2, sigma_high=4.4
)


def idx(array, code=8):
    """Return an array of bytes in the IDX format."""
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def digits_like_mnist():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (40, 28, 28), dtype=np.uint8), np.tile(np.arange(10, dtype=np.uint8), 4)


@pytest.mark.parametrize("layout", ["folder", "compressed", "one file", "npz"])
def test_mnist_is_read_from_any_of_its_usual_files(tmp_path, digits_like_mnist, layout):
    images, label = digits_like_mnist
    path = tmp_path
    if layout == "npz":
        path = tmp_path / "mnist.npz"
        np.savez(path, x_train=images[:30], y_train=label[:30], x_test=images[30:], y_test=label[30:])
    elif layout == "compressed":
        for name, part in (("t10k", slice(30, 40)), ("train", slice(0, 30))):
            (path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images[part])))
            (path / f"{name}-labels-idx1-ubyte").write_bytes(idx(label[part]))
        images, label = np.roll(images, 10, axis=0), np.roll(label, 10)  # the files are read in the order of their names
    else:
        (path / "train-images.idx3-ubyte").write_bytes(idx(images))
        (path / "train-labels.idx1-ubyte").write_bytes(idx(label))
        path = path / "train-images.idx3-ubyte" if layout == "one file" else path
    read = load_mnist(path)
    assert read.side == 28
    np.testing.assert_allclose(read.pixels.numpy(), images.reshape(40, -1) / 127.5 - 1, atol=1e-6)
    assert read.label.tolist() == label.tolist()


def write_pair(folder, images, label):
    (folder / "train-images-idx3-ubyte").write_bytes(images)
    (folder / "train-labels-idx1-ubyte").write_bytes(label)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, label: (b"\x89PNG" + images[4:], label), "begins with 89 50 4e 47, expected 00 00 08 03"),
        (lambda images, label: (images[:-1], label), "but its header says"),
        (lambda images, label: (images[:6], label), "has 6 bytes"),
        (lambda images, label: (b"", label), "begins with"),
        (lambda images, label: (images, idx(np.zeros(39, np.uint8))), "expected 40 integers"),
        (lambda images, label: (images, idx(np.full(40, 10, np.uint8))), "from 10 to 10"),
        (lambda images, label: (idx(np.zeros((40, 28, 20), np.uint8)), label), r"\(40, 28, 20\), expected uint8"),
        (lambda images, label: (idx(np.zeros((0, 28, 28), np.uint8)), idx(np.zeros(0, np.uint8))), r"\(0, 28, 28\)"),
    ],
)
def test_a_damaged_idx_file_is_refused_with_what_is_wrong(tmp_path, digits_like_mnist, change, message):
    write_pair(tmp_path, *change(*map(idx, digits_like_mnist)))
    with pytest.raises(DigitFileError, match=message):
        load_mnist(tmp_path)


def test_other_unusable_files_are_refused_with_what_to_do(tmp_path, digits_like_mnist):
    images, label = digits_like_mnist
    with pytest.raises(DigitFileError, match=r"nowhere does not exist; expected a folder"):
        load_mnist(tmp_path / "nowhere")
    with pytest.raises(DigitFileError, match="has no file like train-images-idx3-ubyte"):
        load_mnist(tmp_path)
    (tmp_path / "digits.csv").write_text("1,2,3")
    with pytest.raises(DigitFileError, match="name of no known format"):
        load_mnist(tmp_path / "digits.csv")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images))[:-20])
    with pytest.raises(DigitFileError, match="has no labels beside it"):
        load_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(label))
    with pytest.raises(DigitFileError, match="cannot read"):
        load_mnist(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros(3)}, "has images in it; expected"),
        ({"x_train": np.zeros((10, 8, 8), np.uint8)}, "not their labels"),
        ({"x_train": np.zeros((10, 8, 8)), "y_train": np.zeros(10, np.uint8)}, "holds float64"),
        ({"x_train": np.array([{}, {}], dtype=object), "y_train": np.zeros(2, np.uint8)}, "cannot read"),  # would be a pickle
    ],
)
def test_an_npz_file_with_other_content_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(DigitFileError, match=message):
        load_mnist(tmp_path / "mnist.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "mnist.npz").read_bytes()[:100])
    with pytest.raises(DigitFileError, match="cannot read"):
        load_mnist(tmp_path / "cut.npz")


def test_the_split_is_disjoint_and_keeps_the_share_of_each_class():
    digits = load_scikit_digits()
    tagged = DigitImages(torch.arange(len(digits))[:, None].float(), digits.label)
    split = split_images(tagged, 10_000, np.random.default_rng(0))
    parts = [split.networks, split.judge, split.test]
    assert sorted(torch.cat([part.pixels[:, 0] for part in parts]).tolist()) == list(range(1797))
    for part, share in zip(parts, (0.5, 0.25, 0.25), strict=True):
        for digit in range(10):
            assert int((part.label == digit).sum()) == pytest.approx(share * int((digits.label == digit).sum()), abs=1.5)
    assert sum(map(len, (split_images(tagged, 200, np.random.default_rng(0)).networks, split.held_out))) < 1100
    with pytest.raises(DigitFileError, match="class 9 has 0 images"):
        split_images(tagged[tagged.label < 9], 10_000, np.random.default_rng(0))


def test_digits_start_from_other_classes_and_noise_is_the_same_for_all():
    digits = load_scikit_digits()
    start, target = draw_starts(digits, "digit", 9, np.random.default_rng(0))
    where = torch.cdist(start, digits.pixels).argmin(1)
    of = digits.label[where].reshape(10, 9)
    assert target.reshape(10, 9)[:, 0].tolist() == list(range(10))
    for digit in range(10):
        assert sorted([digit, *of[digit].tolist()]) == list(range(10))
    noise, _ = draw_starts(digits, "noise", 3, np.random.default_rng(0))
    assert noise.abs().max() <= 1
    assert torch.equal(noise.reshape(10, 3, 64)[0], noise.reshape(10, 3, 64)[7])


# Four classes with one image each, equally likely: the posterior given the noised image is a softmax, so that both guesses of the
# best denoiser, and the derivative of log p(class | noised), are known in closed form.
PROTOTYPES = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, 1.0]])


def true_direction(noised, sigma, label):
    posterior = (-0.5 * torch.cdist(noised, PROTOTYPES).square() / sigma.square()).softmax(1)
    return PROTOTYPES[label] - posterior @ PROTOTYPES


@pytest.fixture(scope="module")
def prototypes():
    return DigitImages(PROTOTYPES.repeat(10, 1), torch.arange(4).repeat(10))


@pytest.fixture(scope="module")
def noised_points():
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(4).repeat(500)
    sigma = torch.empty(2000, 1).uniform_(0.4, 1.0, generator=generator)
    other = torch.randint(4, (2000,), generator=generator)
    return PROTOTYPES[other] + sigma * torch.randn(2000, 4, generator=generator), sigma, label


def relative_error(found, true):
    return float((found - true).norm() / true.norm())


def test_the_denoisers_difference_is_sigma_squared_times_the_slope_of_the_log_posterior(prototypes, noised_points):
    denoiser = train_denoiser(prototypes, SMALL, 0, lambda: None)
    noised, sigma, label = noised_points
    true = true_direction(noised, sigma, label)
    assert relative_error(denoiser_direction(denoiser, False)(noised, noised, sigma, label), true) < 0.2
    image = torch.zeros_like(noised)
    pull = denoiser_direction(denoiser, True)(image, noised, sigma, label) - denoiser(noised, sigma, label)
    torch.testing.assert_close(pull, -image, atol=1e-5, rtol=0)


def test_a_classifier_trained_with_noise_has_the_same_slope_where_the_class_is_possible(prototypes, noised_points):
    classifier = train_classifier(prototypes, SMALL, 0, lambda: None, noised=True)
    noised, sigma, label = noised_points
    # cross entropy hardly says anything about the slope of what almost never happens
    possible = classifier(noised, sigma).gather(1, label[:, None])[:, 0] > math.log(0.05)
    noised, sigma, label = noised[possible], sigma[possible], label[possible]
    found = noised_classifier_direction(classifier)(noised, noised, sigma, label)
    assert len(label) > 500
    assert relative_error(found, true_direction(noised, sigma, label)) < 0.4


def test_the_plain_classifiers_direction_is_its_derivative_at_the_clean_image(prototypes):
    classifier = train_classifier(prototypes, SMALL, 0, lambda: None, noised=False)
    image, label, clean = (
        0.3 * torch.randn(3, 4, generator=torch.Generator().manual_seed(2)),
        torch.tensor([0, 1, 3]),
        torch.zeros(3, 1),
    )
    found = clean_classifier_direction(classifier)(image, torch.full((3, 4), math.nan), torch.ones(3, 1), label)
    for pixel in range(4):
        change = torch.zeros(4)
        change[pixel] = 1e-2
        slope = (classifier(image + change, clean) - classifier(image - change, clean)) / 2e-2
        torch.testing.assert_close(found[:, pixel], slope[torch.arange(3), label], atol=2e-2, rtol=2e-2)


@torch.no_grad()
def test_before_training_the_denoiser_is_the_best_linear_guess_and_its_loss_is_one_at_every_sigma():
    digits = load_scikit_digits()
    centred = DigitImages(digits.pixels - digits.pixels.mean(), digits.label)
    denoiser = ImageDenoiser(centred, SMALL)
    generator = torch.Generator().manual_seed(3)
    for level in (0.05, 0.5, 5.0):
        sigma = torch.full((len(centred), 1), level)
        noised = centred.pixels + sigma * torch.randn(centred.pixels.shape, generator=generator)
        best = noised * denoiser.data_std**2 / (denoiser.data_std**2 + level**2)
        nothing = torch.full((len(centred),), NOTHING)
        torch.testing.assert_close(denoiser(noised, sigma, nothing), best)
        # 115,000 pixels: the standard error of a mean of squares is about 0.5 %
        assert float(denoiser.loss(noised, sigma, nothing, centred.pixels)) == pytest.approx(1, rel=0.03)


def test_a_classifier_gives_log_probabilities_at_any_noise_level():
    digits = load_scikit_digits()
    classifier = ImageClassifier(digits, SMALL)
    for sigma in (0.0, 1.0):
        log_probability = classifier(digits.pixels[:5], torch.full((5, 1), sigma))
        torch.testing.assert_close(log_probability.exp().sum(1), torch.ones(5))


def test_a_walk_moves_by_the_step_and_looks_through_falling_noise():
    seen = []

    def direction(image, noised, sigma, label):
        seen.append((float((noised - image).std()), float(sigma[0])))
        return torch.ones_like(image)

    start, label = torch.full((200, 64), -1.0), torch.zeros(200, dtype=torch.int64)
    settings = WalkSettings(steps=4, sigma_high=2.0, sigma_low=0.25)
    walked = walk(direction, start, label, settings, 0.1, 0, snapshot_steps=[1, 2])
    assert walked.snapshots[:, 0, 0].tolist() == pytest.approx([-0.9, -0.8, -0.6])
    assert walked.lengths.flatten().tolist() == pytest.approx([0.8] * 800, rel=1e-4)
    assert [sigma for _, sigma in seen] == pytest.approx([2, 1, 0.5, 0.25])
    for measured, sigma in seen:
        assert measured == pytest.approx(sigma, rel=0.04)  # 12,800 draws: the standard error is 0.6 %
    assert float(walk(direction, start, label, settings, 9.0, 0).end.max()) == 1.0
    free = WalkSettings(steps=4, clip=False)
    assert float(walk(direction, start, label, free, 9.0, 0).end.max()) == 35.0
    lengths = torch.linspace(0.1, 0.4, 4)[:, None].expand(4, 200)
    torch.testing.assert_close(walk(direction, start, label, settings, lengths, 0).lengths, lengths, atol=1e-4, rtol=1e-4)


def test_the_distance_is_to_the_nearest_other_real_image_of_the_class():
    real = DigitImages(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]), torch.tensor([2, 2, 5]))
    found = nearest_distance(torch.tensor([[0.0, 0.0], [0.0, 0.5], [0.0, 0.5]]), torch.tensor([2, 2, 5]), real)
    assert found.tolist() == pytest.approx([5.0, 0.5, 0.5])


def test_a_summary_takes_the_standard_error_over_repetitions():
    found = summary([[0.0, 2.0], [2.0, 4.0], [4.0, 6.0]])
    assert found["mean"] == 3.0
    assert found["standard_error"] == pytest.approx(2 / math.sqrt(3))
    assert found["per_class"]["mean"] == [2.0, 4.0]
    assert "per_class" not in summary([1.0, 2.0])


@pytest.fixture(scope="module")
def quick():
    networks = NetworkSettings(width=64, blocks=2, training_steps=150, plain_training_steps=60)
    settings = CanonicalNineSettings(
        repetitions=2, images=600, starts=2, tuning_starts=1, networks=networks, walk=WalkSettings(steps=6)
    )
    reports = []
    return measure_canonical_nine(load_scikit_digits(), settings, 0, reports.append), len(reports), settings


def test_even_a_short_training_walks_to_where_the_judge_sees_the_class(quick):
    found, reports, settings = quick
    assert reports == count_work(settings)
    assert found.measured["reference"]["judge_accuracy"]["mean"] > 0.85
    start, end = (found.measured["starts"]["digit"][name]["agreement"]["mean"] for name in ("start", "denoiser"))
    assert start < 0.2
    assert end > 0.7


def test_the_measurement_is_complete_and_fit_for_json(quick):
    measured = json.loads(json.dumps(quick[0].measured))
    for kind in STARTS:
        for method, values in measured["starts"][kind].items():
            for metric in METRICS:
                assert len(values[metric]["per_class"]["mean"]) == 10
                assert len(values[metric]["repetitions"]) == 2
            if method in STEP_SIZES:
                assert all(step in STEP_SIZES[method] for step in values["step"])
                assert [len(tried) for tried in values["tuning"]] == [len(STEP_SIZES[method])] * 2
        same = measured["starts"][kind]["classifier_same_length"]["path_length"]["mean"]
        assert same <= measured["starts"][kind]["denoiser"]["path_length"]["mean"] + 1e-3  # clipping can only shorten


def test_the_figure_is_drawn(quick, tmp_path):
    draw_canonical_nine(quick[0].rows, tmp_path / "nine.png")
    assert (tmp_path / "nine.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CanonicalNineSettings(repetitions=1), "repetitions must be 2 or more, got 1"),
        (lambda: NetworkSettings(width=0), "width must be 1 or more"),
        (lambda: NetworkSettings(nothing_told=1.0), "nothing_told must be between 0 and 1"),
        (lambda: NetworkSettings(sigma_low=2.0, sigma_high=1.0), "expected 0 < sigma_low < sigma_high"),
        (lambda: WalkSettings(steps=0), "steps must be 1 or more"),
        (lambda: WalkSettings(sigma_low=0.0), "expected 0 < sigma_low <= sigma_high"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
