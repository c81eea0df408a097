"""Classes of transformers, each as a small model, held against what they write and read themselves.

``python tests/support/class_census.py`` tries every class that an auto class names, and writes docs/transformers.md;
``--only Name ...`` prints what comes of some. All take about half an hour of one core. Some are made of other packages:
pillow, scipy, timm.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import class_cases as cases
import small_classes
import torch

import crosswalk
from crosswalk.runtime.errors import CrosswalkError

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
#: Auto classes of models of language and of several kinds of input, and of others; of several, the first counts.
LANGUAGE = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ")
OTHERS = (
    "MASKED_LM", "CTC", "RNNT", "TDT", "TEXT_TO_WAVEFORM", "TEXT_TO_SPECTROGRAM", "RETRIEVAL", "PRETRAINING",
    "IMAGE_CLASSIFICATION", "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "MASK_GENERATION",
    "DEPTH_ESTIMATION", "ZERO_SHOT_IMAGE_CLASSIFICATION", "ZERO_SHOT_OBJECT_DETECTION", "VIDEO_CLASSIFICATION",
    "AUDIO_CLASSIFICATION", "TOKEN_CLASSIFICATION", "TEXT_RECOGNITION", "KEYPOINT_DETECTION", "",
)  # fmt: skip
EQUAL, ITSELF, REFUSED, DIFFERS, UNBUILT = "equal", "changes what it reads", "refused", "differs", "not built"


class Job(NamedTuple):
    """A class, the type of config that it is made of, and the auto class that names both."""

    head: str
    type: str
    name: str


class Result(NamedTuple):
    """What came of a job: the kind of outcome, the kind of difference of memory and files, and what is to be said."""

    job: Job
    outcome: str
    kind: str
    details: tuple[str, ...]


def jobs() -> Iterator[Job]:
    """One for each pair of a type of config and a class that an auto class has."""
    import transformers
    from transformers.models.auto import modeling_auto

    seen: set[tuple[str, str]] = set()
    for head in (*LANGUAGE, *OTHERS):
        for kind, names in getattr(modeling_auto, f"MODEL{'_FOR_' if head else ''}{head}_MAPPING_NAMES").items():
            for name in (names,) if isinstance(names, str) else names:
                known = any(kind == other for other, _ in seen) if not head else (kind, name) in seen
                if not known and hasattr(transformers, name):
                    seen.add((kind, name))
                    yield Job(head or "(base)", kind, name)


def made(job: Job) -> Any:
    """A small model with values of its own in everything that files hold. Raises what the class says against it."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = small_classes.default(CONFIG_MAPPING[job.type])
    model = small_classes.small(config, getattr(transformers, job.name)).float().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.125)
            elif tensor.dtype != torch.bool:
                tensor.copy_(torch.randint(1, 90, tensor.shape, generator=generator))
    return model


def checked(model: Any, home: Path) -> tuple[str, list[str]]:
    """The outcome, and what differs, step by step: a model that was never loaded, sent; its files, loaded into memory
    that the class has made and into what it has not; what is sent and written of what was loaded."""
    model.save_pretrained(home / "theirs")
    expected = cases.files(home / "theirs")
    wrong = _step("fresh", expected, _sent(model, model.config))
    try:
        theirs = type(model).from_pretrained(home / "theirs", dtype=torch.float32)
    except Exception as error:  # of every kind
        return (
            (DIFFERS, wrong) if wrong else (ITSELF, [f"the class does not read its own files: {type(error).__name__}"])
        )
    ours = cases.blank(theirs)
    loaded = crosswalk.load(home / "theirs", ours)
    wrong += _step("loaded", dict(theirs.state_dict()), dict(ours.state_dict()))
    wrong += _step("buffers", dict(theirs.named_buffers()), dict(ours.named_buffers()))
    theirs.save_pretrained(home / "again")
    again = cases.files(home / "again")
    changed = _step("the class", expected, again)
    back = again if again.keys() == expected.keys() else expected  # files go back under the names that they had
    wrong += _step("sent", back, _sent(ours, loaded))
    crosswalk.save(ours, loaded, home / "ours")
    wrong += _step("saved", back, cases.files(home / "ours"))
    return (DIFFERS, wrong) if wrong else (ITSELF, changed) if changed else (EQUAL, [])


def tried(job: Job) -> Result:
    """A job from beginning to end; nothing is raised."""
    try:
        model = made(job)
    except Exception as error:  # of every kind: what classes say of configs, and packages that are not here
        return Result(job, UNBUILT, "", (" ".join(str(error).split())[:150],))
    kind = ""
    try:
        with tempfile.TemporaryDirectory() as home:
            outcome, details = checked(model, Path(home))
            kind = _kind(model, cases.files(Path(home) / "theirs"))
    except CrosswalkError as error:
        return Result(job, REFUSED, kind, tuple(f"{d.code}: {d.message}" for d in error.diagnostics))
    except Exception as error:
        return Result(job, DIFFERS, kind, (f"{type(error).__name__}: {' '.join(str(error).split())[:150]}",))
    return Result(job, outcome, kind, tuple(details))


def _sent(model: Any, config: Any) -> dict[str, torch.Tensor]:
    return dict(itertools.chain.from_iterable(crosswalk.stream(model, config)))


def _step(name: str, expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    missing, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = [f"{name}: no `{key}`" for key in missing] + [f"{name}: `{key}` too" for key in more]
    for key in sorted(expected.keys() & found.keys()):
        one, other = expected[key], found[key]
        if one.dtype != other.dtype or one.shape != other.shape:
            wrong.append(f"{name}: `{key}` is {other.dtype} {list(other.shape)}, not {one.dtype} {list(one.shape)}")
        elif not torch.equal(
            one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
        ):
            wrong.append(f"{name}: `{key}` has other values")
    return wrong


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _kind(model: Any, files: Mapping[str, torch.Tensor]) -> str:
    """How the files differ from the memory: not at all, by names, or by what tensors are made of."""
    memory = model.state_dict()
    if all(name in memory for name in files):
        return "same names"
    shapes = [Counter(tuple(tensor.shape) for tensor in side.values()) for side in (files, memory)]
    return "other names" if shapes[0] <= shapes[1] else "split or joined"


def page(results: Sequence[Result], version: str) -> str:
    """docs/transformers.md."""
    lines = [INTRODUCTION.format(version=version, count=len(results))]
    rows = [
        ("language, and language with other input", [r for r in results if r.job.head in LANGUAGE]),
        ("of these, text from text, images or several", [r for r in results if r.job.head in LANGUAGE[:3]]),
        ("all others", [r for r in results if r.job.head not in LANGUAGE]),
    ]
    outcomes = (EQUAL, ITSELF, REFUSED, DIFFERS, UNBUILT)
    lines += ["| classes of | tried | " + " | ".join(outcomes) + " |", "|---" * (len(outcomes) + 2) + "|"]
    for title, group in rows:
        counts = Counter(result.outcome for result in group)
        lines.append(f"| {title} | {len(group)} | " + " | ".join(str(counts[one]) for one in outcomes) + " |")
    kinds_of: dict[str, set[str]] = defaultdict(set)
    for result in rows[1][1]:
        kinds_of[result.job.name].add(result.outcome)
    equal = sum(found == {EQUAL} for found in kinds_of.values())
    lines += [
        "",
        f"The {len(rows[1][1])} pairs of the second line are {len(kinds_of)} classes; {equal} are equal in all.",
    ]
    for outcome in outcomes[1:]:
        found = [result for result in results if result.outcome == outcome]
        lines += ["", f"## {outcome.capitalize()}", "", MEANING[outcome], ""] if found else []
        for result in found:
            more = f" (and {len(result.details) - 1} more)" if len(result.details) > 1 else ""
            lines.append(f"* `{result.job.name}` of `{result.job.type}`: {result.details[0]}{more}")
    lines += ["", f"## {EQUAL.capitalize()}", "", MEANING[EQUAL]]
    kinds: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.outcome == EQUAL:
            kinds[result.kind].append(result)
    for kind in sorted(kinds):
        names = ", ".join(f"{r.job.type}" for r in sorted(kinds[kind], key=lambda r: r.job.type))
        lines += ["", f"*{kind.capitalize()}* ({len(kinds[kind])}): {names}."]
    return "\n".join(lines) + "\n"


INTRODUCTION = """\
<!-- Written by tests/support/class_census.py. -->
# Classes of transformers

A live model of transformers is loaded, published and saved under the names of its checkpoint without a mapping file:
what a class does between its memory and its files is read off its own rules ([publishing.md](publishing.md)). This page
says for which classes that was held against the class itself.

Of {count} pairs of a type of config and a class that auto classes of transformers {version} name, each was made
small, with every kind of layer that its default config has, and random values in all that files hold. Tried were:
what is sent of a model that was never loaded, against `save_pretrained`; what is in memory after loading those files,
with buffers that no file holds, against `from_pretrained`; and what is sent and saved of that, against
`save_pretrained` again. All names, shapes, dtypes and bits have to be the same.
"""
MEANING = {
    EQUAL: "By type of config, and by what differs between memory and files.",
    ITSELF: "The class does not write what it has read, or cannot read it; what is loaded is what it makes of it.",
    REFUSED: "With an error that names the tensors, before anything is changed.",
    DIFFERS: "Not as the class has it.",
    UNBUILT: "No small model could be made of the default config here, so nothing is known.",
}


def main() -> None:
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="CLASS")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    todo = [job for job in jobs() if options.only is None or job.name in options.only]
    torch.set_num_threads(1)
    results = []
    with multiprocessing.get_context("fork").Pool(options.processes, maxtasksperchild=60) as pool:
        for result in pool.imap(tried, todo):
            results.append(result)
            if options.only or result.outcome != EQUAL:
                print(result.outcome, result.job.type, result.job.name, *result.details[:4], sep="\n    ", flush=True)
    if not options.only:
        PAGE.write_text(page(results, transformers.__version__), encoding="utf-8")
    sys.exit(any(result.outcome == DIFFERS for result in results))


if __name__ == "__main__":
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    main()
