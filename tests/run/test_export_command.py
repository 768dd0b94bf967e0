"""`export`: a run's policy, or another model, in the forms that others load."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minimind_dpo import export
from minimind_dpo.demo import MODEL, TOKENIZER
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.load import load_model
from minimind_dpo.options.problem import ConfigError


def test_a_run_is_exported_in_three_forms_and_what_is_there_is_told(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    to = tmp_path / "out"
    export.run([f"run={finished_run}", "format=hf,native,gguf", f"to={to}"])
    written = {path.name for path in to.iterdir()}
    assert {"config.json", "model.safetensors", "dpo_128.pth", "demo-f16.gguf"} <= written
    shown = capsys.readouterr().out
    assert f"ollama create demo -f {to / 'Modelfile'}" in shown
    assert "there already" not in shown
    ids = torch.tensor([[5, 6, 7]])
    own, hf, native = (
        load_model(path, TOKENIZER).model(ids).logits
        for path in (finished_run / "export", to, to / "dpo_128.pth")
    )
    assert torch.equal(own, hf)
    torch.testing.assert_close(own, native, atol=2e-2, rtol=0)  # float16
    stored = torch.load(finished_run / "export" / "dpo_128.pth", weights_only=True)
    again = torch.load(to / "dpo_128.pth", weights_only=True)
    assert list(stored) == list(again)
    assert all(torch.equal(stored[key], again[key]) for key in stored)


def test_a_run_s_own_export_is_left_as_it_is_and_gains_the_gguf(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = {path.name: path.stat().st_mtime_ns for path in (run / "export").iterdir()}
    export.run([f"run={run}", "format=[hf,native,gguf]", "dtype=auto"])
    shown = capsys.readouterr().out
    assert shown.count("there already") == 2
    after = {path.name: path.stat().st_mtime_ns for path in (run / "export").iterdir()}
    assert after.keys() - before.keys() == {"demo-f16.gguf", "Modelfile"}
    assert {name: after[name] for name in before} == before


def test_a_template_that_is_typed_is_written_into_the_run_s_own_export(
    finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    mine = tmp_path / "mine.jinja"
    own = AutoTokenizer.from_pretrained(run / "export").chat_template
    mine.write_text(f"{own}{{# mine #}}", encoding="utf-8")
    export.run([f"run={run}", "format=hf", f"data.chat_template={mine}"])
    written = AutoTokenizer.from_pretrained(run / "export").chat_template
    assert (written == own, written.endswith("{# mine #}")) == (False, True)


def test_another_model_is_exported_in_another_type(tmp_path: Path) -> None:
    model = [f"model.path={MODEL}", f"model.tokenizer={TOKENIZER}"]
    with pytest.raises(ConfigError, match="to: is missing"):
        export.run(model)
    export.run([*model, "format=hf", "dtype=bfloat16", f"to={tmp_path / 'out'}"])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_what_never_was_a_native_file_has_no_native_form(
    finished_run: Path, tmp_path: Path
) -> None:
    model = f"model.path={finished_run / 'export'}"
    with pytest.raises(CheckpointError, match=r"format=native: .* is no file of MiniMind's own"):
        export.run([model, "format=native", f"to={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds diary.txt, which is no part of an exported"):
        export.run([f"run={finished_run}", f"to={tmp_path}"])
