"""The stored results of a run, kept part by part, so that only missing parts are evaluated."""

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from etils import epath

from sdecor.core.files import plain_settings
from sdecor.evaluation import explained, programs
from sdecor.evaluation.choices import RANDOM, Method
from sdecor.evaluation.plan import Plan
from sdecor.evaluation.programs import Subject
from sdecor.evaluation.results import Results, extend, load, load_with_versions, save
from sdecor.evaluation.stored import Maps, explaining

# `progress(what, count)` is a context manager that yields a function, called with each number of examples done.
Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], Any]]]


# To be raised by hand with every change of the program that changes numbers for the same settings.
SCHEMA = 2
PREDICTIONS = "predictions"  # name of the part that needs no explanation


class Store:
    """The results in a run's evaluation.npz, and the attributions of some images in its attributions.npz.

    A part holds the results of one group for one method. It is reused as long as its settings stay the same.

    Attributes:
      results: results of all examples; None before the first evaluation.
      attributions: attributions of some examples, `[images, H, W, C]` by key of the method; None before the first
        explanation.
      parts: settings of each stored part, by its name "method/group".
      versions: package versions of each part and of "predictions".

    Args:
      folder: folder of the files.
      depends: settings that all results depend on, plain values.
      name: suffix of the two files' names, to separate, for example, evaluations of different splits.
      images: number of examples whose attributions are stored.
      versions: package versions of this process.
      fresh: whether stored parts are evaluated again.
      writes: whether this process writes.
    """

    def __init__(
        self,
        folder: Any,
        depends: Mapping[str, Any],
        *,
        name: str = "",
        images: int = 0,
        versions: Mapping[str, str] | None = None,
        fresh: bool = False,
        writes: bool = True,
    ):
        self._images, self._fresh, self._writes = images, fresh, writes
        self._files = [epath.Path(folder) / f"{kind}{name}.npz" for kind in ("evaluation", "attributions")]
        self._depends = {**depends, "schema": SCHEMA}
        self._of_images, self._now = {**self._depends, "images": images}, dict(versions or {})
        self.results, self.parts, self.versions = load_with_versions(self._files[0], self._depends)
        self.attributions, self._explained = load(self._files[1], self._of_images)

    def held(self) -> dict[str, Any]:
        """Return what is stored, for a comparison between processes: all must leave out the same work."""
        return {"predictions": self.results is not None, "parts": self.parts, "explained": self._explained}

    def shown(self, plan: Plan) -> Results:
        """Return the stored attributions for the methods of a plan, without methods that have none."""
        methods, stored = plan.explained(), self.attributions.examples
        keys = [key for key, each in methods.items() if self._explained.get(key) == _options(plan, each)]
        return Results({name: stored[name] for name in ("index", *keys)}, {})

    def other_versions(self, parts: Collection[str]) -> dict[str, dict[str, str]]:
        """Return part → the package versions that differ from this process's, for "predictions" and `parts`."""
        found = {}
        for part in (PREDICTIONS, *sorted(parts)):
            others = {name: each for name, each in self.versions.get(part, {}).items() if self._now.get(name) != each}
            found |= {part: others} if others else {}
        return found

    def complete(self, plan: Plan, subject: Subject, progress: Progress, maps: Maps | None = None) -> None:
        """Evaluate the parts of the plan that are not stored, and store them method by method.

        Args:
          plan: plan of the evaluation.
          subject: the network and its data.
          progress: see `Progress`.
          maps: stored maps to measure; None to explain. With maps, `depends` must identify them.
        """
        if self.results is None or self._fresh:
            with progress("predictions", len(subject.source)) as advance:
                found = programs.predict(subject, advance)
            stored = {} if self.results is None else self.results.examples
            self.results = Results(stored | found.examples, found.moments)
            if maps is not None:  # with tied logits, predictions may differ between devices
                self.results.examples["target"] = np.asarray(maps.targets, np.int32)
            self.versions[PREDICTIONS] = self._now
            self._save()
        for method in plan.methods.values():
            self._explain(plan, method, subject, progress, maps)

    def _explain(self, plan: Plan, method: Method, subject: Subject, progress: Progress, maps: Maps | None) -> None:
        wanted, options = plan.parts(method), _options(plan, method)
        missing = {part: each for part, each in wanted.items() if self._fresh or self.parts.get(part) != each[1]}
        shown = method.key == RANDOM.key or (not self._fresh and self._explained.get(method.key) == options)
        pictures = 0 if shown else self._images
        images = {group.name: plan.images[group.needs] for group, _ in missing.values()}
        if not missing and not pictures:
            return
        groups = [group for group, _ in missing.values() if group.needs != "mosaic"]
        if groups or pictures:
            with progress(method.key, max(pictures, *images.values(), 0)) as advance:
                found, attributions = explained.measure(
                    subject,
                    method,
                    groups,
                    images={group.name: images[group.name] for group in groups},
                    predicted=self.results,
                    pictures=pictures,
                    advance=advance,
                    explain=None if maps is None or method.key == RANDOM.key else explaining(subject, method, maps),
                )
            self.results = extend(self.results, found, method.key)
        for group in [group for group, _ in missing.values() if group.needs == "mosaic"]:
            given = {"images": images[group.name], **dict(group.options)}
            with progress(f"{method.key}, mosaics", images[group.name]) as advance:
                found = explained.grid_pointing_game(subject, method, predicted=self.results, advance=advance, **given)
            self.results = extend(self.results, found, method.key)
        self.parts |= {part: settings for part, (_, settings) in missing.items()}
        self.versions |= dict.fromkeys(missing, self._now)
        if pictures:
            others = {} if self.attributions is None else self.attributions.examples
            own = {"index": attributions.examples["index"], method.key: attributions.examples["attributions"]}
            self.attributions = Results(others | own, {})
            self._explained[method.key] = options
        self._save()

    def _save(self) -> None:
        if not self._writes:
            return
        save(self._files[0], self.results, self._depends, self.parts, self.versions)
        if self.attributions is not None:
            save(self._files[1], self.attributions, self._of_images, self._explained)


def _options(plan: Plan, method: Method) -> dict[str, Any]:
    """Return the settings that a method's attributions depend on."""
    return plain_settings(method.settings(plan.setup.saliency_of))
