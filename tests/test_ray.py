"""Tasks on Ray: the bytes of the other engines, killed workers replaced, failures unchanged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from potstill.core.compute import Compute
from potstill.core.errors import InputError, WorkError
from potstill.core.files import file_hash
from potstill.core.spec import record
from potstill.core.store import Store
from potstill.engine import Tasks, run_tasks
from potstill.methods.chosen import Use
from potstill.methods.recovering import SRe2L
from potstill.nets import NetSpec
from potstill.recover import SRE2L_TINY
from potstill.run import Run, Where, distil
from potstill.teachers import Squeeze, TeacherPlan

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


@record
@dataclass(frozen=True, kw_only=True)
class RaySpec:
    number: int
    compute: Compute = Compute(threads=1)


def work(spec: RaySpec, context: dict[str, str], folder: Path) -> None:
    if spec.number == 98:
        raise InputError("98 is too large.")
    if spec.number == 99:
        raise KeyError("ninety-nine")
    if spec.number == 97:
        os._exit(3)
    if spec.number == 96 and not (begun := Path(context["begun"])).exists():
        begun.write_text(f"{os.getpid()}.")
        for _ in range(600):
            time.sleep(0.1)
    print("noise of a task")
    (folder / "out.txt").write_text(f"{spec.number**2} {torch.get_num_threads()} {os.getcwd()}")


def tasks(*numbers: int, **context: str) -> Tasks:
    specs = tuple(RaySpec(number=n) for n in numbers)
    return Tasks(kind="squares", fn=work, specs=specs, context=context, label="square")


def said(paths: list[Path]) -> list[str]:
    return [(path / "out.txt").read_text() for path in paths]


@pytest.mark.slow
def test_ray_does_and_fails_as_the_other_engines(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    inline, store, seen = Store(tmp_path / "inline"), Store(Path("rays")), []
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    some = tasks(3, 1, 2, 3)
    paths = run_tasks(
        some, store, engine="ray", workers=2, on_done=lambda done, n: seen.append((done, n))
    )
    assert capfd.readouterr() == ("", "")
    assert said(paths) == said(run_tasks(some, inline))
    assert capfd.readouterr().out == "noise of a task\n" * 3
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(InputError, match=r"^square 2 of 2 \(\w+\): 98 is too large\.$"):
        run_tasks(tasks(1, 98), store, engine="ray")
    with pytest.raises(WorkError, match=r"^square 1 of 2 \(\w+\) failed: KeyError: 'ninety-nine'$"):
        run_tasks(tasks(99, 5), store, engine="ray", workers=2)
    assert store.has("squares", RaySpec(number=5))
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(tmp_path, capfd):
    store, begun = Store(tmp_path / "store"), tmp_path / "begun"

    def kill() -> None:
        while not begun.exists() or not begun.read_text().endswith("."):
            time.sleep(0.05)
        os.kill(int(begun.read_text()[:-1]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    paths = run_tasks(tasks(96, 4, begun=str(begun)), store, engine="ray", workers=2)
    killer.join()
    assert [text.split()[0] for text in said(paths)] == ["9216", "16"]
    with pytest.raises(WorkError, match="worker died 4 times"):
        run_tasks(tasks(97), store, engine="ray")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_interrupt_ends_ray_and_leaves_no_rubbish(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from pathlib import Path
        from potstill.core.store import Store
        from potstill.engine import run_tasks
        from test_ray import tasks

        if __name__ == "__main__":
            root = Path(sys.argv[1])
            some = tasks(96, 5, begun=str(root / "begun"))
            try:
                run_tasks(some, Store(root), engine="ray", workers=1)
            except KeyboardInterrupt:
                sys.exit(130)
        """)
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.Popen([sys.executable, script, tmp_path], start_new_session=True, env=env)
    begun = tmp_path / "begun"
    while not begun.exists() or not begun.read_text().endswith("."):
        assert run.poll() is None
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(timeout=120) == 130
    assert not list((tmp_path / "squares").iterdir())
    worker = Path(f"/proc/{begun.read_text()[:-1]}/stat")
    assert not worker.exists() or worker.read_text().split()[2] == "Z"


def test_no_cluster(tmp_path, capfd):
    with pytest.raises(InputError, match=r"no Ray cluster to join at '127\.0\.0\.1:1'"):
        run_tasks(tasks(1), Store(tmp_path), engine="ray@127.0.0.1:1")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_run_has_the_same_bytes_inline_in_processes_and_on_ray(alone, tmp_path):
    method = SRe2L(
        teacher=TeacherPlan(norm="batch", training=Squeeze(lr=0.1, epochs=4, warmup=1, batch=20)),
        recovery=replace(SRE2L_TINY, iterations=4),
        batch=5,
        use=Use(epochs=10),
    )
    net = NetSpec(name="convnet2", width=8)
    run = Run(method=method, data="digits", ipc=2, net=net, limit=20, threads=1, device="cpu")
    found = []
    for engine, workers in (("inline", 1), ("processes", 2), ("ray", 2)):
        store, out = tmp_path / engine, tmp_path / f"run-{engine}"
        distil(run, out, where=Where(store=store, engine=engine, workers=workers))
        files = [
            *store.glob("recovered/*/images.safetensors"),
            *store.glob("teachers/*/teacher.safetensors"),
        ]
        hashes = {str(file.relative_to(store)): file_hash(file) for file in files}
        own = [file_hash(out / name) for name in ("distilled/set.safetensors", "metrics.jsonl")]
        assert len(hashes) == 5
        found.append((hashes, own))
    assert found[0] == found[1] == found[2]
