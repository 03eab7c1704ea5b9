"""Results side by side: what agrees is compared, what does not is refused by name."""

import json

import pytest
from typer.testing import CliRunner

from visual_ar.cli.main import app
from visual_ar.evaluation.report import compare, render
from visual_ar.evaluation.result import document, read_result, write_result

PROTOCOL = {"pictures": 100, "features": {"network": "inception", "weights_sha256": "ab"}}


def result(value, evaluation="fid", **protocol):
    figures = {"FID-100": value, "passes": 3}
    return document(evaluation, {**PROTOCOL, **protocol}, {"samples": "a"}, figures, {"first": 1})


def test_figures_stand_side_by_side():
    one, other = result(1.23456789), result(20.5)
    other["results"]["only here"] = None
    report = compare({"a.json": one, "b.json": other})
    assert report.evaluation == "fid" and report.names == ("a.json", "b.json")
    assert report.rows == (
        ("FID-100", (1.23456789, 20.5)),
        ("passes", (3, 3)),
        ("only here", (None, None)),
    )
    assert render(report).splitlines() == [
        "            a.json  b.json",
        "---------  -------  ------",
        "FID-100    1.23457    20.5",
        "passes           3       3",
        "only here        -       -",
    ]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (result(1.0, "fvd"), "evaluation must agree .* got fid in a and fvd in b"),
        (result(1.0, pictures=99), "pictures must agree .* got 100 in a and 99 in b"),
        (
            result(1.0, features={"network": "lite0", "weights_sha256": "ab"}),
            "features network must agree .* got inception in a and lite0 in b",
        ),
        (result(1.0, length=17), "length must agree .* got - in a and 17 in b"),
        (result(1.0, features=None), "features must agree"),
    ],
)
def test_what_is_not_comparable_is_refused(other, message):
    with pytest.raises(ValueError, match=message):
        compare({"a": result(1.0), "b": other})


def test_one_result_is_no_comparison():
    with pytest.raises(ValueError, match="results must be at least two to compare, got 1"):
        compare({"a": result(1.0)})


def test_a_result_is_written_whole_and_read_again(tmp_path):
    write_result(result(1.5), tmp_path / "a.json")
    assert read_result(tmp_path / "a.json") == result(1.5)
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert {"python", "torch", "torch-fidelity", "visual-ar"} <= set(result(1.5)["versions"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "result must be JSON"),
        ("[]", "result must be written by visual-ar evaluate"),
        ('{"evaluation": "fid"}', "result must be written by visual-ar evaluate"),
        (json.dumps({**result(1.0), "format": 9}), r"evaluate \(format 1\)"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_result(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="result must be an existing file"):
        read_result(tmp_path / "none.json")


def test_the_command_prints_a_table_or_refuses(tmp_path):
    for name, one in (("a", result(1.0)), ("b", result(2.0)), ("c", result(2.0, pictures=9))):
        write_result(one, tmp_path / f"{name}.json")
    a, b, c = (str(tmp_path / f"{name}.json") for name in "abc")
    shown = CliRunner().invoke(app, ["evaluate", "report", a, b])
    assert shown.exit_code == 0 and "FID-100" in shown.stdout
    plain = CliRunner().invoke(app, ["evaluate", "report", a, b, "--json"])
    assert json.loads(plain.stdout)["rows"]["FID-100"] == [1.0, 2.0]
    refused = CliRunner().invoke(app, ["evaluate", "report", a, c])
    assert refused.exit_code == 1 and "pictures must agree" in refused.stderr


def test_speed_has_the_form_of_a_result(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "tiny")
    words = ["--model", str(tmp_path / "tiny"), "--methods", "exact-match:window=4"]
    words += ["--pictures", "2", "--rounds", "1", "--warmup", "0", "--device", "cpu"]
    words += ["--output", str(tmp_path / "speed.json"), "--json"]
    shown = CliRunner().invoke(app, ["evaluate", "speed", *words])
    assert shown.exit_code == 0, shown.output
    found = read_result(tmp_path / "speed.json")
    assert json.loads(shown.stdout) == found
    assert found["results"]["sequential, batch 1, passes"] == 16
    assert found["results"]["sequential, batch 2, speedup"] == 1
    assert found["results"]["exact-match:window=4, batch 1, passes"] <= 16
    assert found["protocol"]["pictures"] == 2 and found["protocol"]["dtype"] == "float32"
    assert found["command"].startswith("visual-ar evaluate speed --model ")
    report = compare({"a": found, "b": found})
    assert len(report.rows) == len(found["results"])
