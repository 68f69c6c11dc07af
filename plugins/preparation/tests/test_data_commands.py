"""`kdcore prepare` and `kdcore data` on a command line."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from kdcore_preparation.pipeline.prepare import DataRecipe, prepare

from kdcore.commands.main import main
from kdcore.errors import DataError
from kdcore.tasks.masked_lm import MaskedLM


@pytest.fixture
def work(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    for name in "ab":
        lines = [f"the teacher of student {name}{number} " * (number % 9 + 1) for number in range(200)]
        (tmp_path / "texts" / f"{name}.txt").write_text("\n".join(lines))
    (tmp_path / "data.yaml").write_text(
        f"corpora: [{{name: text, path: texts}}]\ntokenizer: {tokenizer_folder}\nsequence_length: 32\nheld_out: 0.1\n"
    )
    return tmp_path


def run(*arguments: str) -> int:
    return main(list(arguments))


def test_what_was_prepared_is_told_and_can_be_inspected_and_verified(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prepare", "data.yaml", "out", "--workers", "2", "packing=full") == 0
    printed = capsys.readouterr().out
    documents = [
        int(number) for number in re.findall(r"^(?:train|held_out): (\d+) documents, [\d,]+ sentences", printed, re.M)
    ]
    assert sum(documents) == 400
    assert re.search(r"[\d,]+ tokens in [\d,]+ seconds: [\d,]+ tokens/s", printed)
    manifest = json.loads((work / "out" / "manifest.json").read_text())

    assert run("data", "inspect", "out", "--samples", "2") == 0
    shown = capsys.readouterr().out
    train = manifest["splits"]["train"]
    assert f"train: {train['documents']:,} documents, {train['sentences']:,} sentences" in shown
    histogram = re.findall(r"^ +\d+(?:-\d+)? +([\d,]+)(?: #+)?$", shown.partition("held_out:")[0], re.M)
    assert sum(int(count.replace(",", "")) for count in histogram) == train["sequences"]
    assert shown.count("[CLS]") == 4
    assert "[CLS] the teacher of student" in shown
    assert "no problems found" in shown

    assert run("data", "verify", "out") == 0
    shard = work / "out" / train["shards"][0]["file"]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert run("data", "verify", "out") == 2
    assert f"{shard.name}: is damaged: its checksum differs" in capsys.readouterr().err


def test_preparing_again_says_the_same_and_other_data_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prepare", "data.yaml", "out") == 0
    first = capsys.readouterr().out
    assert run("prepare", "data.yaml", "out") == 0
    again = capsys.readouterr().out
    assert again == re.sub(r"^.*tokens/s\n", "", first, flags=re.M)
    assert run("prepare", "data.yaml", "out", "seed=1") == 2
    assert "already contains other prepared data" in capsys.readouterr().err


def test_shares_are_prepared_one_by_one(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", "data.yaml", "out", "--task", "2/3") == 0
    assert "task 2 of 3 is done; pieces of text left for other tasks: 1" in capsys.readouterr().out
    assert not (work / "out").exists()
    assert run("prepare", "data.yaml", "out", "--task", "1/3") == 0
    assert "prepared in" in capsys.readouterr().out
    assert run("data", "verify", "out") == 0


@pytest.mark.parametrize("value", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2"])
def test_a_share_that_cannot_be_is_refused(work: Path, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", "data.yaml", "out", f"--task={value}") == 2
    assert "from 1 to N, such as 3/8" in capsys.readouterr().err
    assert run("prepare", "data.yaml", "out", "--workers", "0") == 2


def test_damage_is_exit_code_2_with_all_else_prepared_unless_it_is_taken_as_it_is(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = gzip.compress(
        "\n".join(f"document {number} of the zebra {number * 7919}" for number in range(5000)).encode()
    )
    (work / "texts" / "c.gz").write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        assert run("prepare", "data.yaml", "out") == 2
        printed = capsys.readouterr()
        assert "c.gz" in printed.err
        assert "damaged or ends too early" in printed.err
        assert "--keep-going" in printed.err
        assert "train: " in printed.out
    assert run("prepare", "data.yaml", "out", "--keep-going") == 0
    capsys.readouterr()
    assert run("data", "inspect", "out") == 0
    shown = capsys.readouterr().out
    assert re.search(r"problems:\n +could not be read completely: .*c\.gz", shown)
    documents = [int(number.replace(",", "")) for number in re.findall(r": ([\d,]+) documents", shown)]
    assert 400 + 1000 < sum(documents) < 400 + 5000


def test_what_may_be_wrong_with_the_text_is_pointed_out(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "texts" / "a.txt").write_text("日本語 the\n" * 50 + "the\n" * 100)
    (work / "texts" / "b.txt").write_bytes(b"of \xe9t\xe9\n" * 50)
    assert run("prepare", "data.yaml", "out", "held_out=0") == 0
    assert run("data", "inspect", "out", "--samples", "0") == 0
    shown = capsys.readouterr().out.partition("problems:")[2]
    assert re.search(r"train: [\d.]+% of the characters are unknown", shown)
    assert "of the sequences are less than half full" in shown
    assert "invalid UTF-8 sequences; check the encoding" in shown
    assert "held_out" not in shown  # it is empty, as in the recipe


def test_folders_that_are_none_are_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("inspect", "verify"):
        assert run("data", action, "nowhere") == 2
        assert "no such folder" in capsys.readouterr().err
    assert run("data", "inspect", "texts") == 2
    assert "is not a folder of prepared data" in capsys.readouterr().err


def test_masks_of_the_data_are_asked_for_where_there_are_none(work: Path, tokenizer_folder: Path) -> None:
    recipe = DataRecipe(corpora=[{"name": "text", "path": str(work / "texts")}], tokenizer=str(tokenizer_folder))
    folder = prepare(recipe, work / "out").folder
    with pytest.raises(DataError, match="sequences of the split `train` have none") as caught:
        MaskedLM(MaskedLM.Config(data=str(folder), masking="static"), 1, work / "cache")
    assert caught.value.problems[0].key == "task.masking"
