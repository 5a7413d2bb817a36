"""Evaluation by probes: what it refuses, and its tables and plot."""

import dataclasses
import io
import json

import pytest

from potstill.artefact import Hard
from potstill.core.compute import Wish
from potstill.core.errors import InputError
from potstill.core.store import Store
from potstill.evaluation import evaluate, evaluate_pretraining
from potstill.job import eval_rows, keep_rows
from potstill.report import probe_caption, probe_cells, probe_markdown, probe_plot, rich_probes
from probing import counted, data_set


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": ["1%"]}, r"toy: 1 % of 96 labels leaves 3 of 3 classes without a label"),
        ({"labels": ["0%"]}, "percentage above 0"),
        ({"labels": ["half"]}, "percentage above 0"),
        ({"labels": []}, "Probes need labels"),
        ({"shots": [0]}, "at least 1, not 0"),
        ({"shots": [33]}, "toy: Class 0 has 32 labels, fewer than 33 shots"),
        ({"seeds": 0}, "at least 1 network"),
        ({"protocol": "mkdt"}, "mkdt-parity"),
        ({"nets": ["convnet9"]}, "convnet9"),
    ],
)
def test_mistakes_are_refused_before_anything_is_trained(toy, monkeypatch, changes, said):
    store, data, _, s = toy
    calls = counted(monkeypatch, "fit")
    with pytest.raises(InputError, match=said):
        evaluate_pretraining(s, **({"data": data, "store": store, "labels": ["50%"]} | changes))
    assert not calls


def test_sets_and_data_of_another_kind_are_refused(toy, tmp_path):
    store, data, targets, s = toy
    hard = s.hardened()
    hard.save(tmp_path / "hard")
    options = {"data": data, "labels": ["50%"], "store": store}
    with pytest.raises(InputError, match=r"hard has labels of classes, .* `potstill evaluate`"):
        evaluate_pretraining(tmp_path / "hard", **options)
    with pytest.raises(InputError, match="has labels of classes"):
        evaluate_pretraining(s, **options, beside=[tmp_path / "hard"])
    assert isinstance(hard.targets, Hard)
    with pytest.raises(InputError, match="`potstill probe` scores it"):
        evaluate(s, data=data, store=store)
    with pytest.raises(InputError, match="not the data set of this distilled set"):
        evaluate_pretraining(s, **{**options, "data": data_set("other")})
    large = data_set("large", side=16)
    with pytest.raises(InputError, match=r'open it with resize=8, fit="squash"'):
        evaluate_pretraining(s, **options, transfer=[large])
    with pytest.raises(InputError, match="named twice"):
        evaluate_pretraining(s, **options, transfer=[data])
    away = dataclasses.replace(targets, data=data_set("other").ref)
    with pytest.raises(InputError, match="must be like those of the set; they are of other data"):
        evaluate_pretraining(s, **options, targets=away)
    raw = dataclasses.replace(targets, scale="raw")
    with pytest.raises(InputError, match="they are raw"):
        evaluate_pretraining(s, **options, targets=raw)


def test_tables_and_plot_show_every_number(toy, tmp_path):
    _, data, _, s = toy
    options = {"data": data, "transfer": [data_set("elsewhere")], "seeds": 2}
    options["store"] = Store(tmp_path / "none")  # without targets of real images
    options |= {"labels": ["50%"], "shots": [1], "wish": Wish(threads=1)}
    found = evaluate_pretraining(s, **options, nets=["own", "convnet2"])
    head, *body = probe_cells(found)
    assert head[2:6] == ("toy 50%", "toy 1 shot", "elsewhere 50%", "elsewhere 1 shot")
    assert len(body) == 2 * 2
    row = found.rows[0]
    assert body[0][2] == f"{100 * row.mean:.2f} ± {100 * row.std:.2f} ({100 * row.knn:.1f})"
    caption = probe_caption(found)
    assert f"{found.pretrainings} pre-trainings served {found.probes} probes" in caption
    assert "50% = 48 of toy, 1 shot = 3 of toy, 50% = 48 of elsewhere" in caption
    assert probe_markdown(found).count("\n") == 2 + len(body) + 1
    assert rich_probes(found).row_count == len(body)
    figure, png = probe_plot(found), io.BytesIO()
    figure.savefig(png, format="png")
    assert png.getvalue()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [axes.get_title() for axes in figure.axes] == [
        "toy, 50%",
        "toy, 1 shot",
        "elsewhere, 50%",
        "elsewhere, 1 shot",
    ]
    shown = [x for c in figure.axes[0].containers for x in c.lines[0].get_xdata()]
    wanted = [100 * r.mean for r in found.rows if (r.target, r.labels) == ("toy", "50%")]
    assert sorted(shown) == sorted(wanted)
    lines = [json.loads(line) for line in found.lines()]
    assert lines[0]["identity"] == s.ref.identity
    assert len(lines) == len(found.rows)
    assert found.to_json()["probes"] == found.probes


def test_rows_beside_a_run_replace_those_of_one_kind(toy, tmp_path):
    store, data, _, s = toy
    options = {"data": data, "store": store, "seeds": 1, "baselines": False}
    found = evaluate_pretraining(s, **options, labels=["50%", "20%"])
    (tmp_path / "eval.jsonl").write_text('{"protocol": "strict", "name": "distilled"}\n')
    for result in (found, found, evaluate_pretraining(s, **options, shots=[2])):
        keep_rows(tmp_path, result)
    kept = [(row.get("labels"), row["protocol"]) for row in eval_rows(tmp_path)]
    assert sorted(kept, key=str) == [
        ("2 shots", "recommended"),
        ("20%", "recommended"),
        ("50%", "recommended"),
        (None, "strict"),
    ]
