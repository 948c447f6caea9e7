"""What is known of each data set: where its files lie, how many classes and images it has, its prompt.

Numbers are those of spec 7.4 and of the data sets' own pages. Folders, file names and prompts are those of CoOp
(github.com/KaiyangZhou/CoOp: DATASETS.md, trainers/zsclip.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from patchsae.pipeline.core.text import nearest
from patchsae.storage.errors import UserError

Name = Literal[
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
    "imagenetv2",
    "imagenet_sketch",
    "imagenet_a",
    "imagenet_r",
]
Split = Literal["train", "val", "test"]
Layout = Literal["split_file", "aircraft", "imagenet", "imagenet_variant"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of one data set. Paths are relative to the folder that holds all data sets."""

    title: str
    folder: str
    layout: Layout
    images: str
    """The folder of the images, in `folder`; may be empty."""
    split_file: str = ""
    """The file in `folder` that lists the images of each split, in the layout `split_file`."""
    n_classes: int
    splits: Mapping[str, int]
    """Number of images of each split."""
    prompt: str = "a photo of a {}."
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Name of a class in the original data set -> the name that prompts have. Split files have the new names, and
    beside these the year of a car in front, the parts of SUN397's names reversed, and UCF101's names in words."""
    archive: str = ""
    """The data set's file in the mirror; empty if the mirror does not have it."""
    origin: str
    """The page of those who made the data set."""
    remark: str = ""
    """The licence or terms, and what is known of dead links."""

    @property
    def n_images(self) -> int:
        return sum(self.splits.values())


_SPLIT_FROM = "the split file is linked in CoOp's DATASETS.md"

FACTS: Mapping[Name, Facts] = {
    "imagenet": Facts(
        title="ImageNet",
        folder="imagenet",
        layout="imagenet",
        images="images",
        n_classes=1000,
        splits={"train": 1_281_167, "test": 50_000},
        origin="https://image-net.org",
        remark="needs an account there; for non-commercial research; its validation images are the split `test`, in one "
        "folder per class",
    ),
    "caltech101": Facts(
        title="Caltech101",
        folder="caltech-101",
        layout="split_file",
        images="101_ObjectCategories",
        split_file="split_zhou_Caltech101.json",
        n_classes=100,
        splits={"train": 4_128, "val": 1_649, "test": 2_465},
        renamed={"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"},
        archive="caltech-101.zip",
        origin="https://data.caltech.edu/records/mzrjq-6wc02",
        remark=f"CC BY 4.0; the address in CoOp's DATASETS.md is dead; {_SPLIT_FROM}",
    ),
    "oxford_pets": Facts(
        title="OxfordPets",
        folder="oxford_pets",
        layout="split_file",
        images="images",
        split_file="split_zhou_OxfordPets.json",
        n_classes=37,
        splits={"train": 2_944, "val": 736, "test": 3_669},
        prompt="a photo of a {}, a type of pet.",
        archive="oxford_pets.zip",
        origin="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        remark=f"CC BY-SA 4.0; {_SPLIT_FROM}",
    ),
    "stanford_cars": Facts(
        title="StanfordCars",
        folder="stanford_cars",
        layout="split_file",
        images="",
        split_file="split_zhou_StanfordCars.json",
        n_classes=196,
        splits={"train": 6_509, "val": 1_635, "test": 8_041},
        archive="stanford_cars.zip",
        origin="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        remark="for non-commercial research; its original links are dead, the mirror has the images and the split file",
    ),
    "oxford_flowers": Facts(
        title="Flowers102",
        folder="oxford_flowers",
        layout="split_file",
        images="jpg",
        split_file="split_zhou_OxfordFlowers.json",
        n_classes=102,
        splits={"train": 4_093, "val": 1_633, "test": 2_463},
        prompt="a photo of a {}, a type of flower.",
        archive="oxford_flowers.zip",
        origin="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        remark=_SPLIT_FROM,
    ),
    "food101": Facts(
        title="Food101",
        folder="food-101",
        layout="split_file",
        images="images",
        split_file="split_zhou_Food101.json",
        n_classes=101,
        splits={"train": 50_500, "val": 20_200, "test": 30_300},
        prompt="a photo of {}, a type of food.",
        archive="food101.zip",
        origin="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        remark=f"images of Foodspotting, for scientific use; {_SPLIT_FROM}",
    ),
    "fgvc_aircraft": Facts(
        title="FGVCAircraft",
        folder="fgvc_aircraft",
        layout="aircraft",
        images="images",
        n_classes=100,
        splits={"train": 3_334, "val": 3_333, "test": 3_333},
        prompt="a photo of a {}, a type of aircraft.",
        archive="fgvc_aircraft.zip",
        origin="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        remark="for non-commercial research; the folder `data` of the archive, under the name `fgvc_aircraft`",
    ),
    "sun397": Facts(
        title="SUN397",
        folder="sun397",
        layout="split_file",
        images="SUN397",
        split_file="split_zhou_SUN397.json",
        n_classes=397,
        splits={"train": 15_880, "val": 3_970, "test": 19_850},
        archive="sun397.zip",
        origin="https://vision.princeton.edu/projects/2010/SUN/",
        remark="its original download is dead, the mirror has the images and the split file",
    ),
    "dtd": Facts(
        title="DTD",
        folder="dtd",
        layout="split_file",
        images="images",
        split_file="split_zhou_DescribableTextures.json",
        n_classes=47,
        splits={"train": 2_820, "val": 1_128, "test": 1_692},
        prompt="{} texture.",
        archive="dtd.zip",
        origin="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        remark=f"for research; {_SPLIT_FROM}",
    ),
    "eurosat": Facts(
        title="EuroSAT",
        folder="eurosat",
        layout="split_file",
        images="2750",
        split_file="split_zhou_EuroSAT.json",
        n_classes=10,
        splits={"train": 13_500, "val": 5_400, "test": 8_100},
        prompt="a centered satellite photo of {}.",
        renamed={
            "AnnualCrop": "Annual Crop Land",
            "HerbaceousVegetation": "Herbaceous Vegetation Land",
            "Highway": "Highway or Road",
            "Industrial": "Industrial Buildings",
            "Pasture": "Pasture Land",
            "PermanentCrop": "Permanent Crop Land",
            "Residential": "Residential Buildings",
            "SeaLake": "Sea or Lake",
        },
        archive="eurosat.zip",
        origin="https://zenodo.org/records/7711810",
        remark=f"MIT; the folder of the RGB images, under the name `2750`; {_SPLIT_FROM}",
    ),
    "ucf101": Facts(
        title="UCF101",
        folder="ucf101",
        layout="split_file",
        images="UCF-101-midframes",
        split_file="split_zhou_UCF101.json",
        n_classes=101,
        splits={"train": 7_639, "val": 1_898, "test": 3_783},
        prompt="a photo of a person doing {}.",
        archive="ucf101.zip",
        origin="https://www.crcv.ucf.edu/data/UCF101.php",
        remark="that page has the videos; their middle frames and the split file are in the mirror and linked in CoOp's "
        "DATASETS.md",
    ),
    "imagenetv2": Facts(
        title="ImageNetV2",
        folder="imagenetv2",
        layout="imagenet_variant",
        images="imagenetv2-matched-frequency-format-val",
        n_classes=1000,
        splits={"test": 10_000},
        archive="imagenetv2.zip",
        origin="https://github.com/modestyachts/ImageNetV2",
        remark="MIT; the matched-frequency images",
    ),
    "imagenet_sketch": Facts(
        title="ImageNet-Sketch",
        folder="imagenet-sketch",
        layout="imagenet_variant",
        images="images",
        n_classes=1000,
        splits={"test": 50_889},
        archive="imagenet-sketch.zip",
        origin="https://github.com/HaohanWang/ImageNet-Sketch",
    ),
    "imagenet_a": Facts(
        title="ImageNet-A",
        folder="imagenet-adversarial",
        layout="imagenet_variant",
        images="imagenet-a",
        n_classes=200,
        splits={"test": 7_500},
        archive="imagenet-adversarial.zip",
        origin="https://github.com/hendrycks/natural-adv-examples",
        remark="MIT; 200 of ImageNet's classes",
    ),
    "imagenet_r": Facts(
        title="ImageNet-R",
        folder="imagenet-rendition",
        layout="imagenet_variant",
        images="imagenet-r",
        n_classes=200,
        splits={"test": 30_000},
        archive="imagenet-rendition.zip",
        origin="https://github.com/hendrycks/imagenet-r",
        remark="MIT; 200 of ImageNet's classes",
    ),
}


def known_name(word: str) -> Name:
    """The data set of this name. Raises UserError, with the nearest name, if there is none."""
    for name in FACTS:
        if name == word:
            return name
    raise UserError(f"data set `{word}`: is none of CoOp's benchmark{nearest(word, FACTS)}")
