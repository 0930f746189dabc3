"""The canonical nine: does the denoiser's difference lead to a digit, and a classifier's derivative to a texture?

One repetition trains a denoiser and two classifiers on the same half of the images and walks the same start images towards every
class. Judges of other families, trained on a quarter that no network saw, say what each walk reached: a support vector machine,
and a random forest for a second opinion. Step sizes are chosen for each method and kind of start by one procedure, with other
start images and another judge, a support vector machine trained on the networks' half: the smallest size at which its mean
confidence in the target class is within one standard error of its highest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC
from torch import Tensor

from dpg_robot.config import setting
from dpg_robot.learning.digits.images import CLASSES, DigitImages, Split, split_images
from dpg_robot.learning.digits.networks import (
    TRAINING_REPORTS,
    ImageClassifier,
    NetworkSettings,
    train_classifier,
    train_denoiser,
)
from dpg_robot.learning.digits.walk import (
    Direction,
    Walk,
    WalkSettings,
    clean_classifier_direction,
    denoiser_direction,
    noised_classifier_direction,
    walk,
)

METHODS = {
    "denoiser": "denoiser: D(class) - D(nothing)",
    "denoiser_with_prior": "denoiser, with the prior's pull",
    "noised_classifier": "classifier trained with noise",
    "classifier": "plain classifier",
    "classifier_same_length": "plain classifier, denoiser's length",
}
"""Name of each method -> how it is called in print."""

STARTS = {"digit": "a real digit of another class", "noise": "noise"}
"""Kind of start image -> how it is called in print."""

STEP_SIZES = {
    name: tuple(middle * 2.0**power for power in range(-4, 4))
    for name, middle in {"denoiser": 0.2, "denoiser_with_prior": 0.2, "noised_classifier": 0.2, "classifier": 1.0}.items()
}
"""Method -> the step sizes that are tried; the last method takes its steps from the first."""

METRICS = ("confidence", "agreement", "distance", "forest_confidence", "classifier_confidence", "path_length")

_SNAPSHOTS = (0.1, 0.3)  # shares of the walk after which the figure shows it, besides its end


@dataclass(frozen=True)
class CanonicalNineSettings:
    """Settings of the experiment."""

    repetitions: int = setting(4, "repetitions, each with its own split, networks, judges and start images")
    images: int = setting(10_000, "most images to use; all of scikit-learn's are fewer")
    starts: int = setting(18, "start images of each kind per class in each repetition")
    tuning_starts: int = setting(9, "the same, for choosing step sizes")
    networks: NetworkSettings = setting(NetworkSettings, "the networks")
    walk: WalkSettings = setting(WalkSettings, "the walks")

    def __post_init__(self) -> None:
        for name, least in (("repetitions", 2), ("images", 40), ("starts", 1), ("tuning_starts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class FigureRow:
    """One image for each class: ``images`` (10, side, side) in [-1, 1], the judge's ``confidence`` (10,) in that class."""

    method: str
    share: float
    images: NDArray[np.float32]
    confidence: NDArray[np.float64]


@dataclass(frozen=True)
class CanonicalNine:
    """What was measured, ready for JSON, and the first walk to each class from each kind of start in the first repetition."""

    measured: dict[str, Any]
    rows: dict[str, list[FigureRow]]


@dataclass(frozen=True)
class Judges:
    """The judge, the one of second opinion, and the one that chooses step sizes; all from scikit-learn."""

    judge: Any
    forest: Any
    chooser: Any

    @staticmethod
    def train(split: Split, seed: int) -> Judges:
        """Train judge and forest on the judges' quarter, and the chooser on the networks' half."""
        quarter, half = ((part.pixels.numpy(), part.label.numpy()) for part in (split.judge, split.networks))
        return Judges(
            judge=CalibratedClassifierCV(SVC(C=10.0), ensemble=False).fit(*quarter),
            forest=RandomForestClassifier(300, random_state=seed).fit(*quarter),
            chooser=CalibratedClassifierCV(SVC(C=10.0), ensemble=False).fit(*half),
        )


@dataclass(frozen=True)
class Repetition:
    """The parts of one repetition, trained."""

    split: Split
    judges: Judges
    classifier: ImageClassifier
    directions: dict[str, Direction]
    walk_seed: int


def measure_canonical_nine(
    images: DigitImages, settings: CanonicalNineSettings, seed: int, progress: Callable[[str], None]
) -> CanonicalNine:
    """Run all repetitions.

    Args:
        images: the digits.
        settings: what to run.
        seed: seed of everything random.
        progress: called with a description after each piece of work; there are :func:`count_work` of them.

    Raises:
        DigitFileError: too few images of some class.
    """
    repetitions: list[dict[str, Any]] = []
    first_rows: dict[str, list[FigureRow]] = {}
    for index in range(settings.repetitions):
        random = np.random.default_rng([seed, index])
        repetition = prepare(images, settings, random, progress)
        result: dict[str, Any] = {"reference": measure_reference(repetition), "starts": {}}
        for kind in STARTS:
            result["starts"][kind], rows = measure_walks(repetition, kind, settings, random, progress)
            first_rows.setdefault(kind, rows)
        repetitions.append(result)
    return CanonicalNine(summarize(repetitions), first_rows)


def count_work(settings: CanonicalNineSettings) -> int:
    """Return how often :func:`measure_canonical_nine` reports progress."""
    walks = sum(map(len, STEP_SIZES.values())) + len(METHODS)
    return settings.repetitions * (3 * TRAINING_REPORTS + 1 + len(STARTS) * walks)


def prepare(
    images: DigitImages, settings: CanonicalNineSettings, random: np.random.Generator, progress: Callable[[str], None]
) -> Repetition:
    """Split the images and train networks and judges."""
    split = split_images(images, settings.images, random)
    seeds = [int(seed) for seed in random.integers(2**31, size=5)]
    denoiser = train_denoiser(split.networks, settings.networks, seeds[0], lambda: progress("training the denoiser"))
    noised, plain = (
        train_classifier(split.networks, settings.networks, seed, lambda: progress("training classifiers"), noised=with_noise)
        for seed, with_noise in zip(seeds[1:3], (True, False), strict=True)
    )
    judges = Judges.train(split, seeds[3])
    progress("trained the judges")
    directions = {
        "denoiser": denoiser_direction(denoiser, with_prior=False),
        "denoiser_with_prior": denoiser_direction(denoiser, with_prior=True),
        "noised_classifier": noised_classifier_direction(noised),
        "classifier": clean_classifier_direction(plain),
    }
    return Repetition(split, judges, plain, directions, seeds[4])


def draw_starts(images: DigitImages, kind: str, per_class: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return start images (10 * per_class, P) and target classes, class by class.

    Digits are of the nine other classes in turn. Noise is normal with the pixels' own mean and standard deviation, kept in
    range; every class starts from the same noise.
    """
    target = np.repeat(np.arange(CLASSES), per_class)
    if kind == "noise":
        noise = random.normal(float(images.pixels.mean()), float(images.pixels.std()), (per_class, images.pixels.shape[1]))
        return torch.from_numpy(np.tile(noise.clip(-1, 1), (CLASSES, 1)).astype(np.float32)), torch.from_numpy(target)
    other = (target + 1 + np.tile(np.arange(per_class), CLASSES) % (CLASSES - 1)) % CLASSES
    chosen = [random.choice(np.flatnonzero(images.label.numpy() == digit)) for digit in other]
    return images.pixels[torch.as_tensor(chosen)], torch.from_numpy(target)


def measure_reference(repetition: Repetition) -> dict[str, Any]:
    """Measure what the walks' numbers are to be compared with, on real test digits."""
    test, held_out, judges = repetition.split.test, repetition.split.held_out, repetition.judges
    clean = repetition.classifier(held_out.pixels, torch.zeros(len(held_out), 1))
    return {
        "judge_accuracy": float(judges.judge.score(test.pixels.numpy(), test.label.numpy())),
        "forest_accuracy": float(judges.forest.score(test.pixels.numpy(), test.label.numpy())),
        "classifier_accuracy": float((clean.argmax(1) == held_out.label).float().mean()),
        "confidence": class_means(judged(judges.judge, test.pixels, test.label), test.label),
        "forest_confidence": class_means(judged(judges.forest, test.pixels, test.label), test.label),
        "distance": class_means(nearest_distance(test.pixels, test.label, held_out), test.label),
    }


def measure_walks(
    repetition: Repetition,
    kind: str,
    settings: CanonicalNineSettings,
    random: np.random.Generator,
    progress: Callable[[str], None],
) -> tuple[dict[str, Any], list[FigureRow]]:
    """Choose step sizes, walk, and let the judge speak; for one kind of start."""
    tuning = draw_starts(repetition.split.judge, kind, settings.tuning_starts, random)
    start, target = draw_starts(repetition.split.test, kind, settings.starts, random)
    snapshot_steps = [round(share * settings.walk.steps) for share in _SNAPSHOTS]
    unmoved = Walk(start[None], torch.zeros(1, len(start)))
    result: dict[str, Any] = {"start": measure_end(repetition, unmoved, target)}
    rows = figure_rows(repetition, "start", unmoved, target, (0.0,))
    lengths = torch.empty(0)
    for name in METHODS:
        same_length = name == "classifier_same_length"
        direction = repetition.directions["classifier" if same_length else name]
        tuned = {} if same_length else choose_step(repetition, name, tuning, settings.walk, progress)
        step = lengths if same_length else tuned["step"]
        walked = walk(direction, start, target, settings.walk, step, repetition.walk_seed, snapshot_steps)
        lengths = walked.lengths if name == "denoiser" else lengths
        result[name] = measure_end(repetition, walked, target) | tuned
        rows += figure_rows(repetition, name, walked, target, (*_SNAPSHOTS, 1.0))
        progress(f"walked: {METHODS[name]}")
    return result, rows


def choose_step(
    repetition: Repetition, name: str, tuning: tuple[Tensor, Tensor], settings: WalkSettings, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Choose a step size by the one-standard-error rule.

    Returns:
        ``step``, the smallest size at which the chooser's mean confidence in the target class is within one standard error of
        the highest, and ``tuning``, its mean confidence at each size.
    """
    confidence = []
    for step in STEP_SIZES[name]:
        walked = walk(repetition.directions[name], *tuning, settings, step, repetition.walk_seed + 1)
        confidence.append(judged(repetition.judges.chooser, walked.end, tuning[1]))
        progress(f"choosing steps: {METHODS[name]}")
    means = np.mean(confidence, axis=1)
    best = int(means.argmax())
    least = means[best] - np.std(confidence[best]) / np.sqrt(len(tuning[1]))
    return {"step": STEP_SIZES[name][int(np.argmax(means >= least))], "tuning": means.tolist()}


def measure_end(repetition: Repetition, walked: Walk, target: Tensor) -> dict[str, Any]:
    """Return all metrics of the images where walks ended, as means per class."""
    end = walked.end
    log_probability = repetition.classifier(end, torch.zeros(len(end), 1)).gather(1, target[:, None])[:, 0]
    values = {
        "confidence": judged(repetition.judges.judge, end, target),
        "agreement": repetition.judges.judge.predict(end.numpy()) == target.numpy(),
        "distance": nearest_distance(end, target, repetition.split.held_out),
        "forest_confidence": judged(repetition.judges.forest, end, target),
        "classifier_confidence": log_probability.exp().numpy(),
        "path_length": walked.lengths.sum(0).numpy(),
    }
    return {name: class_means(values[name], target) for name in METRICS}


def figure_rows(repetition: Repetition, method: str, walked: Walk, target: Tensor, shares: tuple[float, ...]) -> list[FigureRow]:
    """Return the snapshots of the first walk to each class."""
    first = torch.arange(CLASSES) * (len(target) // CLASSES)
    side = repetition.split.test.side
    return [
        FigureRow(
            method, share, images.reshape(CLASSES, side, side).numpy(), judged(repetition.judges.judge, images, target[first])
        )
        for share, images in zip(shares, walked.snapshots[:, first], strict=True)
    ]


def judged(judge: Any, images: Tensor, label: Tensor) -> NDArray[np.float64]:
    """Return a judge's probability (N,) of the class ``label`` (N,) of images (N, P)."""
    return np.asarray(judge.predict_proba(images.numpy())[np.arange(len(label)), label.numpy()])


def nearest_distance(images: Tensor, label: Tensor, real: DigitImages) -> NDArray[np.float32]:
    """Return the Euclidean distance (N,) of images (N, P) to the nearest real one of class ``label`` (N,), itself excepted."""
    nearest = torch.empty(len(images))
    for digit in set(label.tolist()):
        chosen = label == digit
        distances = torch.cdist(images[chosen], real.pixels[real.label == digit], compute_mode="donot_use_mm_for_euclid_dist")
        nearest[chosen] = torch.where(distances > 0, distances, torch.inf).amin(1)
    return nearest.numpy()


def class_means(values: NDArray[Any], label: Tensor) -> list[float]:
    """Return the mean of values (N,) for each class."""
    return [float(values[label.numpy() == digit].mean()) for digit in range(CLASSES)]


def summarize(repetitions: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard error over repetitions: of each class, of all, and of the differences to the denoiser."""
    reference = {name: summary([item["reference"][name] for item in repetitions]) for name in repetitions[0]["reference"]}
    starts: dict[str, Any] = {}
    for kind in STARTS:
        measured = [item["starts"][kind] for item in repetitions]
        starts[kind] = {
            method: {metric: summary([item[method][metric] for item in measured]) for metric in METRICS}
            | {name: [item[method][name] for item in measured] for name in ("step", "tuning") if name in measured[0][method]}
            for method in measured[0]
        }
        for method, values in starts[kind].items():
            if method not in ("start", "denoiser"):
                values["denoiser_minus_this"] = {
                    metric: summary([np.subtract(item["denoiser"][metric], item[method][metric]) for item in measured])
                    for metric in METRICS
                }
    return {"reference": reference, "starts": starts, "step_sizes": STEP_SIZES}


def summary(values: list[Any]) -> dict[str, Any]:
    """Return mean and standard error over repetitions of values that are numbers, or one number for each class."""
    table = np.array(values, dtype=np.float64).reshape(len(values), -1)
    means, error = table.mean(1), np.sqrt(len(values))
    result: dict[str, Any] = {
        "mean": float(means.mean()),
        "standard_error": float(means.std(ddof=1) / error),
        "repetitions": means.tolist(),
    }
    if table.shape[1] > 1:
        result["per_class"] = {"mean": table.mean(0).tolist(), "standard_error": (table.std(0, ddof=1) / error).tolist()}
    return result
