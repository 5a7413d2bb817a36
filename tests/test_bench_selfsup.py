"""The benchmark of targets and experts: it runs, and its plain versions do the same."""

import json

import pytest

from potstill.core.vision import import_torchvision

SMALL = ["--versions", "plain", "batched", "float32", "--images", "20", "--train", "80",
         "--width", "4", "--repeats", "2"]  # fmt: skip


@pytest.fixture(autouse=True)
def _torchvision(alone):
    import_torchvision()


def test_tiny_targets_and_experts_append_lines(bench, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    found = bench("selfsup").main([*SMALL, "--out", str(out)])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines == json.loads(json.dumps(found))
    assert [line["task"] for line in lines] == ["targets", "experts"]
    assert lines[0]["cpu_seconds"].keys() == {"plain", "batched", "float32"}
    assert lines[1]["cpu_seconds"].keys() == {"plain", "float32"}
    assert all(len(own) == 2 for line in lines for own in line["cpu_seconds"].values())
    assert max(line["float64_difference"] for line in lines) < 1e-9
    assert "the published code was not timed at this size" in capsys.readouterr().out


def test_another_encoder_stops_the_targets(bench, tmp_path, monkeypatch):
    own = bench("selfsup_setting")
    s = own.setting(tmp_path, count=20, width=4, threads=1)
    usual = own.plain_encoder
    monkeypatch.setattr(own, "plain_encoder", lambda net: usual(net).train())
    with pytest.raises(SystemExit, match="encoding differs"):
        own.check_targets(s)


def test_another_step_size_stops_the_experts(bench, tmp_path, monkeypatch):
    own = bench("selfsup_setting")
    s, usual = own.setting(tmp_path, count=80, width=4, threads=1), own.plain_expert

    def twice(net, x, y, epochs):
        return usual(net, x, y, [*epochs, *epochs])

    monkeypatch.setattr(own, "plain_expert", twice)
    with pytest.raises(SystemExit, match="training differs"):
        own.check_experts(s)
