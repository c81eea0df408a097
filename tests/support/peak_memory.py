"""A program that converts under a limit of its address space, and prints the memory it used and what was stated."""

MEMORY = """
import resource, sys
from pathlib import Path
from crosswalk.runtime.files.convert import EngineOptions, write_checkpoint
from crosswalk.runtime.plan.model import Plan
from crosswalk.runtime.checkpoint.source import open_checkpoint
from crosswalk.runtime.files import workers as engine
import torch, threading

plan = Plan.from_json(Path(sys.argv[1]).read_text())
source = open_checkpoint(Path(sys.argv[2]))
plan.verify()
def status(key):
    return next(int(l.split()[1]) << 10 for l in open("/proc/self/status") if l.startswith(key))
before = status("RssAnon")
# Threads and their allocator arenas reserve address space without using it.
limit = status("VmData") + engine.peak_memory(2) + 2 * (8 << 20) + 3 * (64 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
peak = [0]
stop = threading.Event()
def watch():
    while not stop.wait(0.002):
        peak[0] = max(peak[0], status("RssAnon"))
threading.Thread(target=watch, daemon=True).start()
write_checkpoint(plan, source, Path(sys.argv[3]), options=EngineOptions(workers=2))
stop.set()
print(peak[0] - before, engine.peak_memory(2))
"""
