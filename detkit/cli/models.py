"""``detkit models``: the weights that can be used by name."""

from __future__ import annotations

from detkit.cli.common import Printed


def models() -> Printed:
    """List the shipped weights, configs, backbones, necks and heads."""
    from detkit.backbones import BACKBONES, FAMILIES
    from detkit.config.experiment import shipped_configs
    from detkit.heads import HEADS
    from detkit.necks import NECKS
    from detkit.zoo import TORCHVISION, WEIGHTS

    weights = {name: {"licence": w.licence, "classes": len(w.classes), "score": w.score} for name, w in WEIGHTS.items()}
    parts = {"configs": shipped_configs(), "backbones": list(BACKBONES), "necks": list(NECKS), "heads": list(HEADS)}
    lines = [f"weights    {name}  {w['classes']} classes  {w['score']}  {w['licence']}" for name, w in weights.items()]
    lines.append("torchvision's own, trained on COCO, fetched from its server when first used:")
    lines.append(f"           {' '.join(TORCHVISION)}")
    for part, names in parts.items():
        rows = FAMILIES.values() if part == "backbones" else [names]
        lines += [f"{'' if i else part:<10} {' '.join(row)}" for i, row in enumerate(rows)]
    return Printed({"weights": weights, "torchvision": TORCHVISION, **parts}, lines)
