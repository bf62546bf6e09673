"""What was found of a run, kept in its folder part by part: only what is missing is ever evaluated."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from sdecor.evaluation import explained, mosaics, sweep
from sdecor.evaluation.choices import RANDOM, Method
from sdecor.evaluation.plan import Plan, plain
from sdecor.evaluation.results import Results, extend, load, save
from sdecor.evaluation.sweep import Subject

# `progress(what, count)` is a context that gives a function to be told of every few examples done.
Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], Any]]]


RESULTS, ATTRIBUTIONS = "evaluation.npz", "attributions.npz"


class Store:
    """The results in a run's evaluation.npz, and the attributions of some images in its attributions.npz.

    What a method and a measure give is a part of it, reused for as long as the settings that it depends on stay.

    Attributes:
      results: of all examples; None before the first evaluation.
      attributions: of some examples, `[images, H, W, C]` under the methods' keys; None before the first explanation.

    Args:
      folder: of the run.
      depends: settings that everything depends on.
      images: how many examples' attributions are kept.
      fresh: evaluate again what is stored.
      writes: whether this process writes.
    """

    def __init__(
        self, folder: Any, depends: Mapping[str, Any], *, images: int = 0, fresh: bool = False, writes: bool = True
    ):
        self._folder, self._images, self._fresh, self._writes = epath.Path(folder), images, fresh, writes
        self._depends, self._of_images = dict(depends), {**depends, "images": images}
        self.results, self._parts = load(self._folder / RESULTS, self._depends)
        self.attributions, self._explained = load(self._folder / ATTRIBUTIONS, self._of_images)

    def complete(self, plan: Plan, subject: Subject, progress: Progress) -> None:
        """Evaluate what the plan comprises and is not stored, and store it method by method."""
        if self.results is None or self._fresh:
            with progress("predictions", len(subject.source)) as advance:
                found = sweep.predict(subject, advance)
            stored = {} if self.results is None else self.results.examples
            self.results = Results(stored | found.examples, found.moments)
            self._save()
        for method in plan.methods.values():
            self._explain(plan, method, subject, progress)

    def _explain(self, plan: Plan, method: Method, subject: Subject, progress: Progress) -> None:
        wanted, options = plan.parts(method), plain(method.settings(plan.setup.saliency_of))
        missing = {part: each for part, each in wanted.items() if self._fresh or self._parts.get(part) != each[1]}
        shown = method.key == RANDOM.key or (not self._fresh and self._explained.get(method.key) == options)
        pictures = 0 if shown else self._images
        images = {measure.name: plan.images[measure.needs] for measure, _ in missing.values()}
        if not missing and not pictures:
            return
        measures = [measure for measure, _ in missing.values() if measure.needs != "mosaic"]
        if measures or pictures:
            with progress(method.key, max(pictures, *images.values(), 0)) as advance:
                found, attributions = explained.measure(
                    subject,
                    method,
                    measures,
                    images={measure.name: images[measure.name] for measure in measures},
                    predicted=self.results,
                    pictures=pictures,
                    advance=advance,
                )
            self.results = extend(self.results, found, method.key)
        for measure in [measure for measure, _ in missing.values() if measure.needs == "mosaic"]:
            given = {"images": images[measure.name], **dict(measure.options)}
            with progress(f"{method.key}, mosaics", images[measure.name]) as advance:
                found = mosaics.grid_pointing_game(subject, method, predicted=self.results, advance=advance, **given)
            self.results = extend(self.results, found, method.key)
        self._parts |= {part: settings for part, (_, settings) in missing.items()}
        if pictures:
            others = {} if self.attributions is None else self.attributions.examples
            own = {"index": attributions.examples["index"], method.key: attributions.examples["attributions"]}
            self.attributions = Results(others | own, {})
            self._explained[method.key] = options
        self._save()

    def _save(self) -> None:
        if not self._writes:
            return
        save(self._folder / RESULTS, self.results, self._depends, self._parts)
        if self.attributions is not None:
            save(self._folder / ATTRIBUTIONS, self.attributions, self._of_images, self._explained)
