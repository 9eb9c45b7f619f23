"""Pure metrics of erased pictures: functions of verdicts, features and pixels; no model is loaded, nothing is drawn."""

from semipermeable.evaluation.scores.accuracy import CanvasHits, canvas_hits, erasing_harmonic, harmonic_mean
from semipermeable.evaluation.scores.bootstrap import Estimate, Resampling, paired_difference
from semipermeable.evaluation.scores.clip_scores import clip_error_rate, clip_errors, clip_scores
from semipermeable.evaluation.scores.copies import copied, cosine_similarities, pixel_similarities
from semipermeable.evaluation.scores.distances import Moments, frechet_distance, kernel_distance, moments_of
from semipermeable.evaluation.scores.figures import (
    FIGURES,
    Figure,
    Sheet,
    case_values,
    differences_of,
    figure_of,
    figures_of,
    resample,
)
from semipermeable.evaluation.scores.perceptual import perceptual_distances
from semipermeable.evaluation.scores.pixels import identical_pixels, pixel_drift

__all__ = [
    "FIGURES",
    "CanvasHits",
    "Estimate",
    "Figure",
    "Moments",
    "Resampling",
    "Sheet",
    "canvas_hits",
    "case_values",
    "clip_error_rate",
    "clip_errors",
    "clip_scores",
    "copied",
    "cosine_similarities",
    "differences_of",
    "erasing_harmonic",
    "figure_of",
    "figures_of",
    "frechet_distance",
    "harmonic_mean",
    "identical_pixels",
    "kernel_distance",
    "moments_of",
    "paired_difference",
    "perceptual_distances",
    "pixel_drift",
    "pixel_similarities",
    "resample",
]
