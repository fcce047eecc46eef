"""Does the rhythm of the paper hold? `python analyze.py [ckpt_path=<run, adapter or checkpoint, or several>]`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rhythm import cli


def analyze_policies(cfg: DictConfig) -> None:
    """Analyzes one policy, or several of one base, and writes analysis.json and report.html."""
    from hydra.utils import instantiate

    from rhythm.analysis.progress import AnalysisProgress
    from rhythm.analysis.report import report
    from rhythm.analysis.results import to_json
    from rhythm.analysis.study import AnalysisSettings, analyze
    from rhythm.analysis.trajectory import movement, policies
    from rhythm.machine import check_device
    from rhythm.runs import load_policy, run_of
    from rhythm.settings import check_same_subject

    check_device(cfg.device)
    adapters = policies(OmegaConf.to_container(cfg)["ckpt_path"])
    for adapter in adapters.values():
        check_same_subject(cfg, adapter, HydraConfig.get().overrides.task)
    chosen = OmegaConf.create({field.name: cfg[field.name] for field in fields(AnalysisSettings)})
    settings = AnalysisSettings(**instantiate(chosen, _convert_="all"))
    task = instantiate(cfg.task, _convert_="all")
    latest = list(adapters.values())[-1]
    output = Path(cfg.output or ((run_of(latest) if latest else Path()) / "analysis"))
    if output.is_file():
        raise ValueError(f"output={output}: there is a file of that name; name a folder")
    output.mkdir(parents=True, exist_ok=True)
    tables, moved, first = {}, {}, None
    with AnalysisProgress(adapters) as progress:
        for name, adapter in adapters.items():
            policy = None  # not two at once
            policy = load_policy(cfg.policy, adapter).to(cfg.device)
            found = analyze(policy, task, settings, progress.of(name))
            tables[name] = found.tables
            if first is not None:
                moved[name] = movement(policy, found, first, settings)
            first = first or found
    subject = {"policy": cfg.policy.path, "task": cfg.task._target_}
    written = subject | {"settings": OmegaConf.to_container(chosen), "analyses": tables}
    (output / "analysis.json").write_text(to_json(written | {"movement": moved}), encoding="utf-8")
    page = report(policy, found, tables, moved, settings, title=f"{cfg.policy.path}, {name}")
    (output / "report.html").write_text(page, encoding="utf-8")
    print(f"written to {output / 'analysis.json'} and {output / 'report.html'}")


if __name__ == "__main__":
    cli.main(analyze_policies, "analyze")
