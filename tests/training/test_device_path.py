"""The path for accelerators, without one: a device that works late.

Tensors stay on the CPU, but they are taken for those of an accelerator, whose streams do nothing until somebody
waits for them. A buffer that is filled again too early, or a result that is used too early, then has wrong bytes.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import publisher_cases as cases
import pytest
import torch
from native_llama import assert_equal, blank, native_state
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import crosswalk
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.training import load as live
from crosswalk.runtime.training import save as saving
from crosswalk.runtime.training import transfer
from crosswalk.runtime.training.ranks import team

BUCKET = 5_000


class Deferred(TorchDispatchMode):
    """Puts copies into the queue of a stream instead of doing them. ``hosts``: where the buffers on the host begin."""

    def __init__(self, queue: list[Work], hosts: set[int]) -> None:
        super().__init__()
        self.queue, self.hosts = queue, hosts

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is torch.ops.aten.copy_.default:
            to_host = arguments[0].untyped_storage().data_ptr() in self.hosts
            self.queue.append(Work(lambda: function(*arguments, **(options or {})), to_host))
            return arguments[0]
        return function(*arguments, **(options or {}))


class Work(NamedTuple):
    """A copy that is waiting; ``to_host``: that nothing on the device needs."""

    do: Callable[[], Any]
    to_host: bool


class Event:
    def __init__(self, stream: Stream) -> None:
        self.stream, self.upto = stream, stream.done + len(stream.queue)

    def synchronize(self) -> None:
        self.stream.work(self.upto)


class Stream:
    """What is put on it happens when an event after it is waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.queue: list[Work] = []
        self.done = 0
        self.lock = threading.Lock()

    def work(self, upto: int) -> None:
        with self.lock:
            while self.done < upto:
                self.queue.pop(0).do()
                self.done += 1

    def wait_stream(self, other: Stream) -> None:
        """What comes next on this stream happens at once; what is last on its way to the host, still later."""
        upto = other.done + len(other.queue)
        for work in reversed(other.queue):
            if not work.to_host:
                break
            upto -= 1
        other.work(upto)

    def record_event(self) -> Event:
        return Event(self)


class Accelerator:
    """What ``torch.get_device_module`` returns for it."""

    Stream = Stream

    def __init__(self) -> None:
        self.current = Stream(torch.device("cpu"))
        self.copies = 0
        self.hosts: set[int] = set()
        self.buffers: list[torch.Tensor] = []  # kept, so that nothing else comes to lie where one was

    def host_buffer(self, size: int, where: torch.device) -> torch.Tensor:
        buffer = torch.empty(size, dtype=torch.uint8)
        self.hosts.add(buffer.data_ptr())
        self.buffers.append(buffer)
        return buffer

    def current_stream(self, device: torch.device) -> Stream:
        return self.current

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = len(stream.queue)
        with Deferred(stream.queue, self.hosts):
            yield
        self.copies += len(stream.queue) - before


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    device = Accelerator()
    monkeypatch.setattr(torch, "get_device_module", lambda where: device)
    monkeypatch.setattr(transfer, "on_host", lambda where: False)
    for module in (transfer, saving):
        monkeypatch.setattr(module, "host_buffer", device.host_buffer)
    return device


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_and_saving_wait_for_the_device(
    dtype: torch.dtype, checkpoint: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    expected = native_state(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    plan = crosswalk.compile_plan(config, "llama")
    state = blank(expected, dtype=dtype)
    live.load(plan, open_checkpoint(checkpoint), state, team(), bucket_bytes=BUCKET)
    assert_equal(state, {name: tensor.to(dtype) for name, tensor in expected.items()})
    assert accelerator.copies > 50

    export = crosswalk.compile_plan(crosswalk.import_config(config), "llama", to="hf")
    theirs = {name: tensor.to(dtype).float() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    for background in (None, team):
        destination = tmp_path / f"out-{background is None}"
        done = saving.save(export, state, destination, team(), background, bucket_bytes=BUCKET)
        if background is not None:
            for tensor in state.values():  # what is in the making may change as soon as the call returns
                tensor.zero_()
            assert isinstance(done, Future)
            done.result()
        assert_equal(load_file(destination / "model.safetensors"), theirs)


class Late(TorchDispatchMode):
    """A device whose one stream works when it must: copies wait in a queue, in their order, until something else that
    is done on the device, or a copy to the host that is waited for. One that is not waits until the end. ``hosts``:
    where tensors of the host begin."""

    def __init__(self, hosts: set[int]) -> None:
        super().__init__()
        self.hosts, self.late = hosts, 0
        self.queue: list[Callable[[], Any]] = []

    def work(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        def do() -> Any:
            return function(*arguments, **(options or {}))

        written = [a.alias_info is not None and a.alias_info.is_write for a in function._schema.arguments]
        if not any(written) and any(a.alias_info is not None for a in function._schema.arguments):
            return do()  # a view
        if function is torch.ops.aten._foreach_copy_.default:
            for pair in zip(*arguments[:2], strict=True):
                self.__torch_dispatch__(torch.ops.aten.copy_.default, (), pair, {"non_blocking": True})
            return None
        if function is torch.ops.aten.copy_.default:
            waits = arguments[2] if len(arguments) > 2 else (options or {}).get("non_blocking", False)
            self.queue.append(do)
            self.late += 1
            if self._on_host(arguments[0]) and not waits:
                self.work()
            return arguments[0]
        tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
        if not tensors or not all(map(self._on_host, tensors)):
            self.work()
        return do()

    def _on_host(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.hosts


def test_publishing_waits_for_the_device(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets, packed and not, changes against a snapshot in pinned memory, and the places of elements."""
    state = native_state(checkpoint)
    loaded = crosswalk.load(checkpoint, state)
    publisher = crosswalk.publisher(state, loaded, dtype={"*norm*": "bfloat16"}, bucket_bytes=60_000)
    expected = {name: tensor.clone() for bucket in publisher.buckets() for name, tensor in bucket}
    device = Late(set())
    empty = torch.empty

    def pinned(*sizes: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
        tensor = empty(*sizes, **more)
        if pin_memory:
            device.hosts.add(tensor.untyped_storage().data_ptr())
        return tensor

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr("crosswalk.runtime.publishing.recipes.on_host", lambda where: False)
    with device:
        snapshot = publisher.snapshot(pin=True)
        found = {name: tensor for bucket in publisher.buckets() for name, tensor in bucket}
        packed = {name: tensor for bucket in publisher.packed(align=256) for name, tensor in bucket.named()}
        for tensor in state.values():
            tensor.view(-1)[2::37] += 1
        delta = publisher.delta(snapshot)
        patches = list(delta.patches())
        delta.commit()
        again = list(publisher.delta(snapshot).patches())
        name = "decoder.1.mlp.layer_2.weight"
        located = list(publisher.locate(name, torch.arange(state[name].numel())))
    assert device.late > 50
    device.work()
    monkeypatch.undo()
    now = {name: tensor.clone() for bucket in publisher.buckets() for name, tensor in bucket}
    engine = {name: tensor.clone() for name, tensor in expected.items()}
    views = {name for name, tensor in found.items() if torch.equal(tensor, now[name])}
    assert 0 < len(views) < len(found)
    assert_equal({n: t for n, t in found.items() if n not in views}, {n: expected[n] for n in found if n not in views})
    assert_equal(packed, expected)
    assert again == []
    assert cases.apply(engine, patches) > 100
    assert_equal(engine, now)
    for target, positions, indices in located:
        assert torch.equal(now[target].view(-1)[indices.long()], state[name].view(-1)[positions])
