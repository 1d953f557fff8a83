"""``detkit models``: the weights that can be used by name."""

from __future__ import annotations

from detkit.cli.common import JsonOption, print_json


def models(as_json: JsonOption = False) -> int:
    """List the shipped weights, configs, backbones, necks and heads."""
    from detkit.backbones import BACKBONES, FAMILIES
    from detkit.config import shipped_configs
    from detkit.heads import HEADS
    from detkit.necks import NECKS
    from detkit.zoo import TORCHVISION, WEIGHTS

    parts = {
        "configs": shipped_configs(),
        "backbones": list(BACKBONES),
        "necks": list(NECKS),
        "heads": list(HEADS),
    }
    weights = {name: {"licence": w.licence, "classes": len(w.classes), "score": w.score} for name, w in WEIGHTS.items()}
    if as_json:
        print_json({"weights": weights, "torchvision": TORCHVISION, **parts})
        return 0
    for name, facts in weights.items():
        print(f"weights    {name}  {facts['classes']} classes  {facts['score']}  {facts['licence']}")
    print("torchvision's own, trained on COCO, fetched from its server when first used:")
    print(f"           {' '.join(TORCHVISION)}")
    for part, names in parts.items():
        lines = [" ".join(members) for members in FAMILIES.values()] if part == "backbones" else [" ".join(names)]
        for line, text in enumerate(lines):
            print(f"{'' if line else part:<10} {text}")
    return 0
