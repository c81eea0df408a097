"""A model in memory as the tensors of a checkpoint, as often as they are wanted: all that does not depend on values is
found once."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from crosswalk.runtime.dtypes import torch_dtype
from crosswalk.runtime.errors import CrosswalkError, fail
from crosswalk.runtime.plan.model import Plan, TensorSpec
from crosswalk.runtime.training.parameters import Model
from crosswalk.runtime.training.ranks import Table, Team, share_out, table
from crosswalk.runtime.training.save import counted

from .checksums import bytes_of, digest_of
from .current import Current
from .exchange import Ranks, exchange
from .locate import Located, flat_indices, locate, readers
from .order import in_buckets, publishing_order
from .pieces import Strided
from .recipes import Recipe, Way, fill, pack, received, viewed
from .shards import Chunks, ShardRegion, chunks, regions

NamedTensor = tuple[str, torch.Tensor]


class Published(NamedTuple):
    """A tensor that is published."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


class Bucket(NamedTuple):
    """Tensors in one ``buffer`` of bytes, ``tensors[i]`` from byte ``offsets[i]`` on."""

    buffer: torch.Tensor
    tensors: tuple[Published, ...]
    offsets: tuple[int, ...]

    def named(self) -> list[NamedTensor]:
        """The tensors, as views of the buffer."""
        return [
            (name, self.buffer[start : start + one.nbytes].view(dtype).view(shape))
            for one, start in zip(self.tensors, self.offsets, strict=True)
            for name, dtype, shape in [one]
        ]


class Publisher:
    """The targets of ``plan``, made of what ``model`` holds, over and over. Made, and used, by all ranks of ``team``
    alike: every method with an ``Iterator`` is a collective if the ranks need each other, and every rank must consume
    it. Values are read when a bucket is made; some tensors are views of parameters.

    ``only``: the targets that are published; ``elsewhere``: what other ranks have, which may be absent here; ``doing``:
    what messages call it; ``proved``: the plan whose proof counts, if it is another (:func:`.order.doubled`).

    Raises ``CrosswalkError``, on every rank, for what any of them finds when it is made; and (``publisher/stale``) when
    it is used and the model has become another one. Memory that has moved is followed.
    """

    def __init__(
        self,
        plan: Plan,
        model: Model,
        team: Team,
        bucket_bytes: int,
        group: dist.ProcessGroup | None = None,
        elsewhere: Mapping[str, TensorSpec] | None = None,
        only: Collection[str] | None = None,
        doing: str = "publish",
        proved: Plan | None = None,
    ) -> None:
        self.plan, self.team, self._group, self._doing = plan, team, group, doing
        with team.step(f"checking the model to {doing}") as step:
            step.agree |= {"bucket_bytes": bucket_bytes, "plan": plan.digest, "metadata": plan.metadata}
            step.agree |= {"only": sorted(only) if only is not None else None}
            problems = (proved or plan).verify().problems
            if problems:
                raise CrosswalkError(problems)
            self.current = Current(model, plan.sources, elsewhere)
            step.value = table(self.current.placed)
        #: What each rank holds.
        self.tables: list[Table] = step.values
        self._compare_copies()
        kept = [i for i, spec in enumerate(plan.targets) if only is None or spec.name in only]
        self.targets = publishing_order(plan, kept)
        #: The targets of each bucket.
        self.bucketed = in_buckets(plan, self.targets, bucket_bytes)
        self._ways: dict[Any, Way] = {}
        self._readers: dict[str, list[tuple[str, Strided]]] = {}
        with team.step(f"planning what to {doing}"):
            self.way(None)

    def _compare_copies(self) -> None:
        """Raise unless copies of tied parameters are equal now; later it is taken for granted."""
        pairs = self.plan.ties
        specs = [spec for spec in self.plan.sources if spec.name in pairs or spec.name in pairs.values()]
        counted(self.plan, self.current.placed, share_out(self.tables, specs)[self.team.rank], self.team)

    @functools.cached_property
    def metadata(self) -> tuple[Published, ...]:
        """What is published, in the order in which it is; the same on every rank, and known before a byte moves."""
        return tuple(self._published(target) for target in self.targets)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of what moves, from where to where, and in which order."""
        text = repr((self.plan.digest, self.tables, [(m.name, str(m.dtype), m.shape) for m in self.metadata]))
        return hashlib.sha256(text.encode()).hexdigest()

    def buckets(self, *, to: int | Collection[int] | None = None) -> Iterator[list[NamedTensor]]:
        """Lists of ``(name, tensor)``, whole, where the parameters are. ``to``: a rank of the group, or several; the
        others send what these lack, get no lists, and hold nothing. By default all ranks get all."""
        way = self.way(self.ranks(to))
        self.begin(to)
        return self._lists(way)

    def packed(self, *, to: int | Collection[int] | None = None, align: int = 1) -> Iterator[Bucket]:
        """The same in one buffer of bytes for each bucket, which is new each time; tensors begin at multiples of
        ``align`` bytes, and without one each ends where the next begins. Raises ``CrosswalkError`` for another
        ``align`` than a number of bytes."""
        way = self.way(self.ranks(to))
        if not isinstance(align, int) or align < 1:
            raise fail("publisher/align", f"`align` is {align}", None, "pass a number of bytes, as 256")
        self.begin(to)
        return self._packed(way, align)

    def locate(self, parameter: str, indices: torch.Tensor) -> Iterator[Located]:
        """Where elements of a parameter go. ``indices``: flat ones in what this rank holds of it, its local tensor or
        the tensors of its ``Shards`` one after the other; the fastest if they ascend. No collective.

        Raises ``CrosswalkError`` (``publisher/locate``) for a parameter that is not the plan's, or not contiguous, and
        for what are no flat indices in it."""
        if parameter not in self._readers:
            self._readers[parameter] = readers(self.plan, self.current, parameter)
        count = sum(part.tensor.numel() for part in self.current.placed[parameter].parts)
        return locate(self._readers[parameter], flat_indices(indices, count), count)

    def share(self) -> dict[str, torch.Tensor]:
        """The part of this rank, if all are dealt out as whole tensors, evenly: those that it has whole first."""
        way = self.way("share")
        self.begin("share")
        return {name: tensor for bucket in self._lists(way) for name, tensor in bucket}

    def shards(self) -> dict[str, tuple[ShardRegion, ...] | None]:
        """What each rank has of each tensor, as boxes: the same on all ranks, without a word between them."""
        return regions(self.plan, self.tables, self.targets)

    @functools.cached_property
    def chunks(self) -> dict[str, Chunks | None]:
        """How each tensor is cut over the ranks, where each has one regular chunk of it; the same on all ranks."""
        found = self.shards()
        return {one.name: chunks(one.shape, found[one.name], self.team.size) for one in self.metadata}

    def local(self) -> Iterator[NamedTensor]:
        """Each tensor as the chunk of it that this rank has (:attr:`chunks`), cast, and whole where it is not cut so.
        A collective."""
        self.begin("local")
        held, way = self.shards(), self.way(None)
        for targets in self.bucketed:
            cut = [target for target in targets if self.chunks[self.plan.targets[target].name] is not None]
            recipe = way.recipe([target for target in targets if target not in set(cut)])
            whole = dict(self._named(recipe, self._made(recipe, None)))
            for one in (self._published(target) for target in targets):
                yield one.name, whole[one.name] if one.name in whole else self._chunk(one, held[one.name] or ())

    def _chunk(self, one: Published, held: Sequence[ShardRegion]) -> torch.Tensor:
        mine = next((region for region in held if region.rank == self.team.rank), None)
        if mine is None:
            way = self.chunks[one.name]
            assert way is not None
            sizes = [stop - start for start, stop in way.box(one.shape, self.team.rank)]
            return torch.empty(sizes, dtype=one.dtype, device=self.current.device)
        parts = self.current.placed[mine.parameter].parts
        part = next(part.tensor for part in parts if part.box == mine.held).detach().contiguous()
        sizes = [stop - start for start, stop in mine.box]
        return part.as_strided(sizes, mine.strides, part.storage_offset() + mine.offset).to(one.dtype)

    def checksums(self, algorithm: str = "sha256") -> dict[str, str]:
        """By tensor, the digest of its bytes as they are published, on every rank; each is made by the rank whose share
        it is in. ``algorithm``: ``xxh3-128``, or a name of ``hashlib``. A collective.

        Raises ``CrosswalkError`` (``publisher/checksum``) for another algorithm."""
        digest = digest_of(algorithm)
        mine = {name: digest(bytes_of(tensor)) for name, tensor in self.share().items()}
        found = self.team.gather("comparing checksums", mine)
        return {one.name: next(theirs[one.name] for theirs in found if one.name in theirs) for one in self.metadata}

    def begin(self, asked: Any) -> None:
        """Let all ranks look at their parameters again, and agree on what they do. Raises ``CrosswalkError``."""
        with self.team.step(f"beginning to {self._doing}") as step:
            step.agree["asked"] = str(asked)
            self.current.refresh()

    def meet(self, value: Any = None) -> list[Any]:
        """What each rank says, once all have come to the next bucket."""
        # The collectives themselves wait as long as their groups were made to, and name nobody.
        return self.team.gather(f"gathering parameters to {self._doing}", value)

    def exchange(
        self, outgoing: Mapping[Ranks, torch.Tensor], incoming: Mapping[tuple[int, Ranks], int]
    ) -> dict[tuple[int, Ranks], torch.Tensor]:
        """Send bytes to the ranks that get them, and receive those by sender and receivers. All ranks take part."""
        return exchange(outgoing, incoming, f"gathering parameters to {self._doing}", self._group)

    def some(self, to: Ranks | None, targets: Sequence[int]) -> list[NamedTensor]:
        """Some of the tensors of a bucket, of which they are this once."""
        recipe = self.way(to).recipe(targets, keep=False) if targets else Recipe()
        return self._named(recipe, self._made(recipe, None))

    def way(self, to: Ranks | str | None) -> Way:
        """How tensors get to some ranks; planned at the first use."""
        if to not in self._ways:
            everyone = tuple(range(self.team.size))
            if isinstance(to, str):
                receivers = self._dealt()
            else:
                receivers = [everyone if to is None else to] * len(self.plan.targets)
            self._ways[to] = Way(self.plan, self.current, self.tables, self.team.rank, receivers)
        return self._ways[to]

    def ranks(self, to: int | Collection[int] | None) -> Ranks | None:
        """What ``to`` names: ranks, ascending, or None for all. Raises ``CrosswalkError`` (``publisher/rank``) for
        ranks that there are not."""
        if to is None:
            return None
        named = list(to) if isinstance(to, Collection) else [to]
        if not named or not all(isinstance(rank, int) and 0 <= rank < self.team.size for rank in named):
            text = f"`to` is {to}, and there are {self.team.size} ranks"
            raise fail("publisher/rank", text, None, "name ranks of the group, from 0 on")
        ranks = tuple(sorted(set(named)))
        return None if len(ranks) == self.team.size else ranks

    def _dealt(self) -> list[Ranks]:
        """One rank for each target: the one with least among those that have all of it, or among all."""
        needs: dict[int, set[str]] = {}
        for copy in self.plan.copies:
            needs.setdefault(copy.target, set()).add(self.plan.sources[copy.source].name)
        boxes = {spec.name: tuple((0, size) for size in spec.shape) for spec in self.plan.sources}
        whole = [{name for name, held in found.items() if boxes[name] in held} for found in self.tables]
        load = [0] * self.team.size
        dealt: list[Ranks] = [(0,)] * len(self.plan.targets)
        for target in sorted(self.targets, key=lambda t: (-self.plan.targets[t].nbytes, t)):
            having = [rank for rank in range(self.team.size) if needs.get(target, set()) <= whole[rank]]
            rank = min(having or range(self.team.size), key=lambda rank: load[rank])
            load[rank] += self.plan.targets[target].nbytes
            dealt[target] = (rank,)
        return dealt

    def _published(self, target: int) -> Published:
        spec = self.plan.targets[target]
        return Published(spec.name, torch_dtype(spec.dtype), spec.shape)

    def _lists(self, way: Way) -> Iterator[list[NamedTensor]]:
        for targets in self.bucketed:
            recipe = way.recipe(targets)
            bucket = self._named(recipe, self._made(recipe, None))
            if bucket:
                yield bucket
            del bucket  # before the next one is made

    def _named(self, recipe: Recipe, made: Sequence[torch.Tensor]) -> list[NamedTensor]:
        return [(self.plan.targets[target].name, tensor) for target, tensor in zip(recipe.targets, made, strict=True)]

    def _packed(self, way: Way, align: int) -> Iterator[Bucket]:
        for targets in self.bucketed:
            recipe = way.recipe(targets)
            tensors = tuple(self._published(target) for target in recipe.targets)
            offsets: list[int] = []
            end = 0
            for tensor in tensors:
                step = math.lcm(align, tensor.dtype.itemsize) if align > 1 else 1
                offsets.append(-(-end // step) * step)
                end = offsets[-1] + tensor.nbytes
            buffer = torch.empty(end, dtype=torch.uint8, device=self.current.device)
            bucket = Bucket(buffer, tensors, tuple(offsets))
            self._made(recipe, [tensor for _, tensor in bucket.named()])
            if tensors:
                yield bucket
            del bucket, buffer

    @torch.no_grad()
    def _made(self, recipe: Recipe, into: Sequence[torch.Tensor] | None) -> list[torch.Tensor]:
        """The tensors of a bucket that this rank gets; all in the memory given as ``into``, or else in new memory, or
        views of parameters where these have them as they are."""
        held = self.current.tensors
        if recipe.meets:
            self.meet()
        sent = {ranks: pack(recipe, ranks, held, self.current.device) for ranks in recipe.outgoing}
        came = self.exchange(sent, recipe.incoming) if recipe.meets else {}
        sent.clear()
        views = {} if into is not None else {out.slot: out for out in recipe.views}
        made: list[torch.Tensor] = []
        for slot, target in enumerate(recipe.targets):
            spec = self.plan.targets[target]
            if into is not None:
                made.append(into[slot])
            elif slot in views:
                _, part, copy = views[slot]
                made.append(viewed(held[part], spec, copy.offset))
            else:
                made.append(torch.empty(spec.shape, dtype=torch_dtype(spec.dtype), device=self.current.device))
            if slot in recipe.zeroed:
                made[-1].zero_()
        kept = recipe.copies if into is None else [*recipe.views, *recipe.copies]
        fill([(held[part], made[slot], copy) for slot, part, copy in kept])
        fill(received(recipe.arrivals, came, made))
        return made
