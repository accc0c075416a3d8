"""The table of all settings: what each default rests on."""

from __future__ import annotations

from nnunetv2_genseg.config import GenSegConfig, Settings

HEAD = """
## Defaults

What each default rests on. Arms that no table above shows are [archived](ARCHIVE). But for `intensity.shift`, their synthetic
pairs were added to the batch, so that they are weak evidence for pairs that take the place of real patches. "Not measured" is a
choice by reason, open to a measurement.

| setting | default | evidence |
| --- | --- | --- |
""".replace("ARCHIVE", "../benchmarks/results/archive/README.md")
EVIDENCE = {
    "schedule.warmup": "archived: 0.02 (`genseg_deformation_early`) is worse on foot ulcers, level on ultrasound (one seed)",
    "schedule.ramp": "archived: 0.05, no warm-up, no tail (`genseg_deformation_throughout`) loses 2.3 on foot ulcers (three "
    "seeds)",
    "schedule.tail": "archived: 0 (`genseg_deformation_no_tail`) is worse on foot ulcers, 0.9 better on ultrasound (one seed)",
    "mixing.share": "not measured",
    "mixing.sources": "with `redraw` (`genseg_random`) 0.8 ± 0.6 above without (`genseg_random_without_redraw`) on "
    "ultrasound, with 5 cases 1.5 ± 1.8 above; with nnUNetTrainerDA5 (`genseg_da5_random`) 2.8 ± 0.1 above on polyps (three "
    "seeds); the weights are not measured",
    "paste.probability": "0.5 (`genseg_random_without_redraw`) against 0 (`genseg_deformation`): +0.5 ± 0.8 on ultrasound, "
    "with 5 cases +2.2 ± 1.7 (three seeds), -0.2 on hippocampus (one seed)",
    "paste.kinds": "not measured",
    "deformation.displacement": "archived: this, with the next two (`genseg_deformation_strong`), against half of it, 4000 "
    "iterations: +0.6 on foot ulcers, +1.3 on ultrasound, level on hippocampus (one seed)",
    "deformation.rotation": "as `deformation.displacement`; the half was 10",
    "deformation.scaling": "as `deformation.displacement`; the half was 0.1",
    "intensity.tone": "archived: 0.5 (`deformation_tone`) against 0: better on hippocampus, worse on X-ray, so half of it",
    "intensity.shift": "archived: a fixed shift of half of the patch's standard deviation is 0.5 ± 0.1 below this on "
    "hippocampus, 0.4 ± 0.4 on ultrasound (three seeds); a tenth of it lost 2.7 against the half on ultrasound (one seed)",
    "masks.source": "archived: learned shapes (`genseg_learned_masks`) are 1.0 below `real` on hippocampus (one seed)",
    "unlabelled.images": "`genseg_unlabelled` is 0.2 ± 0.5 above `genseg` on ultrasound, with 10 cases 2.0 ± 1.1, "
    "with 5 cases 2.3 ± 1.3, in the mean of five datasets with 10 or 20 cases 0.4 ± 0.5 (three seeds)",
    "unlabelled.share": "all instead of half: 0.1 ± 0.8 above this on ultrasound with 10 cases (validation part, three seeds)",
    "unlabelled.confidence": "0.95 is 0.4 ± 0.4 above this on ultrasound with 10 cases (validation part, three seeds)",
    "review.file": "not measured on patients; on phantoms a test: pairs with the rejected defect become at most half as frequent",
    "redraw.mode": "archived, 4000 iterations: with this mode `genseg` is 1.4 and 0.9 above `genseg_deformation` on foot "
    "ulcers and ultrasound, else level; the other modes are not measured",
    "redraw.tissue_classes": "not measured",
    "generator.name": "archived: `vae` and `diffusion` are below `gan` on foot ulcers, level on hippocampus in 2D (one seed)",
    "generator.width": "not measured",
    "generator.learning_rate": "not measured",
    "generator.l1": "not measured; the weight in pix2pix is 100 for images in [-1, 1]",
    "generator.interval": "not measured",
    "generator.pretrained": "not measured",
    "generator.diffusion.sampling_steps": "not measured for the segmentation network; chosen by cost",
    "feedback.enabled": "with it (`genseg`) 0.5 ± 0.8 above without (`genseg_random`) on ultrasound, with nnUNetTrainerDA5 "
    "1.0 ± 0.4 above on polyps, with 5 cases of ultrasound 2.3 ± 0.5 above (three seeds), 2.2 ± 0.4 of it by holding cases "
    "out (`genseg_still`); on foot ulcers with 5 cases 1.9 ± 1.2 below (three seeds)",
    "feedback.parameters": "archived: hippocampus, one seed: 0.782, weights 0.788, policy 0.767, within chance; the choice of "
    "the paper",
    "feedback.start": "not measured",
    "feedback.interval": "not measured",
    "feedback.patches": "Dice not measured; in 3D two took 1.44 times stock's time and 1.88 times its memory, one takes 1.36 "
    "and 1.37 times",
    "feedback.learning_rate": "1e-12 (`genseg_still`) is 0.1 ± 0.1 below on ultrasound with 5 cases (three seeds); archived: "
    "0.1 (`genseg_fast`) is level on ultrasound (three seeds); 1e-5 for weights: not measured",
    "feedback.cases": "archived: 0.2 (`genseg_more_cases`) is 1.4 and 1.2 points worse on hippocampus (two seeds)",
    "feedback.rotations": "archived: 1 (`genseg_fixed_cases_from_batch`) is 2.9 points worse on hippocampus (one seed)",
}
GROUPED = ("mixing.sources", "paste.kinds")
"""Settings with a value a name, each in one line."""


def default_values() -> Settings:
    """Every setting but the seed and its default, by its full name."""
    values = {key: value for key, value in GenSegConfig().flat().items() if key != "seed"}
    for group in GROUPED:
        weights = {key: values.pop(key) for key in list(values) if key.startswith(f"{group}.")}
        values[group] = ", ".join(f"{key.removeprefix(f'{group}.')} {weight:g}" for key, weight in weights.items())
    return values


def defaults() -> str:
    """Markdown: every setting, its default and its evidence.

    Raises:
        RuntimeError: a setting lacks its evidence, or there is evidence for a setting that does not exist.
    """
    values = default_values()
    if values.keys() != EVIDENCE.keys():
        raise RuntimeError(f"settings and evidence differ: {sorted(values.keys() ^ EVIDENCE.keys())}")
    return HEAD + "\n".join(f"| `{key}` | {values[key]} | {evidence} |" for key, evidence in EVIDENCE.items()) + "\n"
