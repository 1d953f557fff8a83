"""Two command lines or more of every verb, which its help ends with; DATA, RUN and MODEL stand for the user's own."""

from __future__ import annotations

EXAMPLES = {
    "detect": (
        "detect photo.jpg --json",
        "detect photos/ --model RUN --classes dog,cat --out found.csv",
        "detect photos/ --shards found --workers 4",
        "detect aerial.jpg --slice auto --save",
    ),
    "track": ("track clip.mp4 --save", "track clip.mp4 --count line:0,250,768,250 --out tracks.txt"),
    "match verify": ("match verify a.jpg b.jpg -m RUN", "match verify a.jpg b.jpg --threshold 0.8"),
    "match enrol": ("match enrol known.gallery ann ann.jpg -m RUN", "match enrol known.gallery bob 1.jpg 2.jpg -m RUN"),
    "match identify": (
        "match identify known.gallery who.jpg -m RUN",
        "match identify known.gallery 1.jpg --threshold 0.7",
    ),
    "match search": ("match search crop.jpg photos/", "match search crop.jpg photos/ -n 20 -m RUN"),
    "serve": ("serve", "serve --model RUN --port 0 --report page.html"),
    "quickstart": ("quickstart", "quickstart mine.jpg --overwrite"),
    "data check": (
        "data check DATA",
        "data check DATA --split val --headers",
        "data check DATA --duplicates --against OTHER --out pairs.jpg",
    ),
    "data stats": ("data stats DATA", "data stats DATA --out plots"),
    "data show": ("data show DATA -n 20", "data show DATA --augment 3 --out augmented.jpg"),
    "data convert": ("data convert DATA --to coco --out new", "data convert DATA --to yolo --out new --split val"),
    "data split": ("data split DATA", "data split DATA --out parts"),
    "data crops": ("data crops DATA --out crops", "data crops DATA --split val --out crops"),
    "data strips": ("data strips clip.mp4 --out strips", "data strips frames/ --out strips --frames 4 --step 2"),
    "data anchors": ("data anchors DATA", "data anchors DATA -k 6"),
    "label": ("label photos/ -m MODEL -o labels.json", "label DATA --keep 0.5 --ignore 0.2"),
    "propose": ("propose photo.jpg --max 100 -o proposals.png", "propose DATA --recall --limit 50"),
    "train": ("train --data DATA", "train yolo --data DATA train.epochs=20", "train --resume RUN"),
    "pretrain": ("pretrain simclr --data photos/", "pretrain rotation --data photos/ model.size=96 train.epochs=5"),
    "adapt": ("adapt MODEL dark/ -o dark.safetensors", "adapt RUN clip.mp4 -o new.safetensors --share 0.5"),
    "help": ("help", "help E020"),
    "config": ("config yolo", "config my.yaml train.epochs=20"),
    "models": ("models", "models --json"),
    "evaluate": (
        "evaluate RUN DATA --report page.html",
        "evaluate --predictions found.json DATA",
        "evaluate --predictions tracks.txt gt.txt --protocol mot",
        "evaluate RUN FOLDERS --protocol knn",
    ),
    "compare": ("compare RUN RUN -o image.png", "compare RUN MODEL --data DATA"),
    "inspect filters": ("inspect filters RUN", "inspect filters efficientnet_lite0 --out filters"),
    "inspect maps": ("inspect maps RUN photo.jpg", "inspect maps RUN photo.jpg --stage 2 -n 6"),
    "inspect patches": ("inspect patches RUN DATA", "inspect patches RUN DATA --stage 2"),
    "inspect cam": ("inspect cam RUN photo.jpg", "inspect cam RUN photo.jpg --classes dog"),
    "inspect edges": ("inspect edges", "inspect edges photo.jpg"),
    "style": ("style photo.jpg painting.jpg -o styled.jpg", "style photo.jpg painting.jpg --start noise --every 25"),
    "info": ("info RUN --layers", "info lenet_textbook --input 32x32x3"),
    "import darknet": (
        "import darknet net.cfg net.weights -o net.safetensors",
        "import darknet net.cfg net.weights -o net.safetensors --overwrite",
    ),
    "import torchvision": (
        "import torchvision fasterrcnn_resnet50_fpn -o net.safetensors",
        "import torchvision state.pth -o net.safetensors",
    ),
    "import nanodet": (
        "import nanodet nanodet-plus-m_416.ckpt -o net.safetensors",
        "import nanodet nanodet-plus-m_416.param -o net.safetensors",
    ),
    "import yolox": ("import yolox yolox_nano.pth -o net.safetensors", "import yolox yolox_s.onnx -o net.safetensors"),
    "export": ("export RUN -o model.onnx", "export RUN -o model.onnx --data DATA --split val"),
    "compress": (
        "compress MODEL --ranks 1024,256 -o small.safetensors",
        "compress RUN --ranks 256,64 -o s.safetensors",
    ),
    "doctor": ("doctor", "doctor --warm"),
}


def epilog(verb: str) -> str:
    """The end of a verb's help; ``\\b`` keeps its lines as they are."""
    return "\n".join(["\b", "Examples:", *(f"  detkit {line}" for line in EXAMPLES.get(verb, ()))])
