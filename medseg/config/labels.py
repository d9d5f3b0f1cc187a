"""What a label is: its name, its values, and what nnU-Net makes of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Label = int | list[int]
"""A label's value, or the values whose union is a region."""

BACKGROUND = "background"

IGNORE = "ignore"
"""nnU-Net's name of the label whose voxels count for nothing."""


class Structure(NamedTuple):
    """What is segmented and measured: its name, and the values that its voxels may hold."""

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Labels:
    """A task's labels, with the meaning that nnU-Net's ``LabelManager`` gives them.

    Attributes:
        painted: Names to the value that a segmentation is painted with, in the order of painting,
            background first. Regions take the values of ``regions_class_order`` and are painted
            over each other; ``ignore`` is never painted.
        structures: nnU-Net's key in a summary (``"1"``, or ``"(1, 2)"`` for a region) to the
            structure; neither background nor ``ignore`` is one.
        per_class: Names in the order of nnU-Net's per-class values: by value, or regions as they
            are declared.
        values: All values that a label map may hold, ascending; 0 and ``ignore`` included.
        ignore: The value whose voxels count for nothing; None where there is none.
        has_regions: Whether some label is a region: a list of two values or more.
    """

    painted: Mapping[str, int]
    structures: Mapping[str, Structure]
    per_class: tuple[str, ...]
    values: tuple[int, ...]
    ignore: int | None
    has_regions: bool

    @classmethod
    def of(
        cls, labels: Mapping[str, Label], regions_class_order: Sequence[int] | None = None
    ) -> Labels:
        """The labels that a config, or nnU-Net's ``dataset.json``, declares.

        Args:
            labels: Names to values, or to lists of values.
            regions_class_order: The value that each region is painted with, in the order of
                ``labels`` without background and ``ignore``.

        Raises:
            ValueError: They break one of nnU-Net's rules; the message names the field and the rule.
        """
        if labels.get(BACKGROUND) != 0:
            raise ValueError("labels: must hold 'background: 0'")
        has_regions = any(isinstance(label, list) and len(label) > 1 for label in labels.values())
        named = {
            name: tuple(label) if isinstance(label, list) else (label,)
            for name, label in labels.items()
            if name != IGNORE
        }
        values = sorted({value for own in named.values() for value in own})
        ignored = labels.get(IGNORE)
        if ignored is not None and ignored != values[-1] + 1:
            raise ValueError("labels: ignore must be the value after the highest (nnU-Net's rule)")
        if not has_regions and values != list(range(len(values))):
            raise ValueError("labels: values must be consecutive: 0, 1, 2, … (nnU-Net's rule)")
        foreground = [Structure(name, own) for name, own in named.items() if set(own) != {0}]
        if not foreground:
            raise ValueError("labels: must name at least one structure beside the background")
        if has_regions:
            per_class = [name for name, _ in foreground]
            order = _checked_order(regions_class_order, len(foreground))
            painted = {BACKGROUND: 0, **dict(zip(per_class, order, strict=True))}
            lists = {name for name, label in labels.items() if isinstance(label, list)}
            structures = {str(s.values if s.name in lists else s.values[0]): s for s in foreground}
        else:
            painted = {name: own[0] for name, own in named.items()}
            structures = {str(s.values[0]): s for s in foreground}
            per_class = [s.name for s in sorted(structures.values(), key=lambda s: s.values)]
        return cls(
            painted=painted,
            structures=structures,
            per_class=tuple(per_class),
            values=tuple(values if ignored is None else [*values, ignored]),
            ignore=ignored,
            has_regions=has_regions,
        )

    @property
    def drawn(self) -> dict[str, int]:
        """:attr:`painted`, and ``ignore`` over all: what a reference label map is drawn with."""
        return dict(self.painted) if self.ignore is None else {**self.painted, IGNORE: self.ignore}

    def value_of(self, names: Collection[str]) -> int | None:
        """The value of a voxel that lies in several structures at once, in a reference label map.

        Args:
            names: The structures that it lies in.

        Returns:
            The value that lies in these structures and no others. Where there is none, that of the
            structure painted last, if it lies in all of them: a core that was drawn without the
            whole around it. None if it does not: such structures cannot share a voxel.
        """
        members = set(names)
        if IGNORE in members:
            return self.ignore
        homes = {
            value: {item.name for item in self.structures.values() if value in item.values}
            for value in self.values
        }
        for value, home in homes.items():
            if home == members:
                return value
        last = [value for name, value in self.painted.items() if name in members][-1]
        return last if members <= homes.get(last, set()) else None

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """The names of the regions, and all values that the voxels of each may hold."""
        return {s.name: s.values for s in self.structures.values() if len(s.values) > 1}

    @property
    def names(self) -> dict[str, str]:
        """nnU-Net's key of each structure to its name."""
        return {key: structure.name for key, structure in self.structures.items()}


def _checked_order(order: Sequence[int] | None, regions: int) -> Sequence[int]:
    if not order:
        raise ValueError(
            "regions_class_order: is needed where a label is a list of values (region-based)"
        )
    if len(order) != regions:
        raise ValueError(
            f"regions_class_order: must hold {regions} values, one for each label but the "
            "background"
        )
    return order
