"""The datasets: one entry each, for a reader to skim. A new dataset is a new entry here and nothing
else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kdnb.images import numbering
from kdnb.images.phantoms import PER_CLASS

PARTS = ("train", "val", "test")  # of a split


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a dataset before any file of it is seen.

    ``classes`` maps a readable name to the folder names that stand for it in public copies
    (compared without case, blanks and punctuation); empty means that the folders name the classes.
    ``counts`` are the published images a class. ``groups`` are (pattern, name) pairs that read a
    patient from a file name; ``group_key`` says it in words. ``tables`` are (name, split) pairs of
    the tables that state labels, splits or patients where no folder does, without their suffix,
    with the split of their images; the labels are spelt as ``classes`` says. A text file among
    them lists the images of its split. ``trees`` are top folders that hold the
    same images twice. ``groups_of`` gives groups by path where no pattern can. ``flips`` are
    the mirrorings that keep an image plausible. ``distrust``
    says what was measured against the official split, or, where there is none, against any; where
    it is stated, the default is a split by groups. ``pooled``: papers put the published parts
    together and split anew, whatever the official split. ``by_masks``: no folder names a class,
    each image's lesion mask does. ``patients_known``: every image names its patient, so a split
    rests on patients alone.
    """

    name: str
    title: str
    modality: str
    classes: dict[str, tuple[str, ...]]
    citation: str
    licence: str
    source: str
    layout: str
    group_key: str
    counts: dict[str, int] = field(default_factory=dict)
    official_split: str | None = None
    distrust: str = ""
    pooled: bool = False
    by_masks: bool = False
    patients_known: bool = False
    groups: tuple[tuple[str, str], ...] = ()
    tables: tuple[tuple[str, str], ...] = ()
    trees: tuple[str, ...] = ()
    groups_of: Callable[[Sequence[str]], dict[str, str]] | None = None
    kaggle: str | None = None
    size_gb: float | None = None
    native_size: tuple[int, int] | None = None
    color: str = "auto"
    flips: str = ""
    synthetic: bool = False
    notes: str = ""

    @property
    def slug(self) -> str:
        """The name as a folder may carry it."""
        return self.name.replace(":", "-")

    @property
    def own(self) -> bool:
        """Whether the images are the reader's own: the folders name the classes."""
        return not self.classes

    @property
    def total(self) -> int:
        """Published number of images, 0 where the reader's folder decides."""
        return sum(self.counts.values())


def _phantom(
    name: str, title: str, modality: str, color: str, classes: tuple[str, ...], flips: str = ""
) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        title=title,
        modality=modality,
        color=color,
        flips=flips,
        synthetic=True,
        classes=dict.fromkeys(classes, ()),
        counts=dict.fromkeys(classes, sum(PER_CLASS.values())),
        citation="kdnb, this repository (kdnb/images/phantoms.py)",
        licence="MIT, as this repository",
        source="generated from a seed, nothing is downloaded",
        layout="{Train,Val,Test}/<class>/{images,organ masks,lesion masks}/*.png",
        official_split="Train / Val / Test, made independently of each other",
        group_key="one image a synthetic patient",
        notes="Synthetic and no medical evidence of any kind.",
    )


_ENTRIES = (
    _phantom(
        "phantom_cxr",
        "Chest phantom",
        "synthetic chest radiograph",
        "L",
        ("COVID-like", "Non-COVID-like", "Normal-like"),
    ),
    _phantom(
        "phantom_histology",
        "Histology phantom",
        "synthetic histology",
        "RGB",
        ("gland-forming", "solid nests", "benign"),
        flips="hv",
    ),
    _phantom(
        "phantom_brain",
        "Brain phantom",
        "synthetic brain MRI",
        "L",
        ("infiltrating", "extra-axial", "no lesion", "sellar"),
        flips="h",
    ),
    _phantom(
        "phantom_fundus",
        "Fundus phantom",
        "synthetic fundus photograph",
        "RGB",
        ("hazy", "haemorrhages", "large cup", "plain"),
        flips="h",
    ),
    DatasetSpec(
        name="covid_qu_ex",
        title="COVID-QU-Ex",
        modality="chest radiograph",
        color="L",
        native_size=(256, 256),
        classes={"COVID-19": ("COVID",), "Non-COVID": ("Non COVID", "Pneumonia"), "Normal": ()},
        counts={"COVID-19": 11956, "Non-COVID": 11263, "Normal": 10701},
        citation="Tahir et al. (2021), COVID-19 infection localization and severity grading from "
        "chest X-ray images, Computers in Biology and Medicine 139:105002, "
        "doi:10.1016/j.compbiomed.2021.105002",
        licence="CC BY-SA 4.0",
        source="https://www.kaggle.com/datasets/anasmohammedtahir/covidqu",
        kaggle="anasmohammedtahir/covidqu",
        size_gb=1.2,
        layout="Lung Segmentation Data/Lung Segmentation Data/{Train,Val,Test}/<class>/"
        "{images,lung masks}/*.png\n"
        "Infection Segmentation Data/Infection Segmentation Data/{Train,Val,Test}/<class>/"
        "{images,lung masks,infection masks}/*.png\n(classes: COVID-19, Non-COVID, Normal)",
        official_split="Train / Val / Test",
        trees=("Lung Segmentation Data", "Infection Segmentation Data"),
        groups=((r"^(sub-S\d+)", "bimcv-{0}"), (r"^(person\d+)_(?:bacteria|virus)", "kermany-{0}")),
        group_key="none in the published running numbers; patients where upstream names survive "
        "(BIMCV, Kermany)",
        notes="Assembled from many sources: the classes differ in scanner and hospital as well as "
        "in disease.",
    ),
    DatasetSpec(
        name="lc25000",
        title="LC25000",
        modality="histology (H&E)",
        color="RGB",
        flips="hv",
        native_size=(768, 768),
        classes={
            "lung adenocarcinoma": ("lung_aca",),
            "lung benign": ("lung_n",),
            "lung squamous cell carcinoma": ("lung_scc",),
            "colon adenocarcinoma": ("colon_aca",),
            "colon benign": ("colon_n",),
        },
        counts=dict.fromkeys(
            (
                "lung adenocarcinoma",
                "lung benign",
                "lung squamous cell carcinoma",
                "colon adenocarcinoma",
                "colon benign",
            ),
            5000,
        ),
        citation="Borkowski et al. (2019), Lung and colon cancer histopathological image dataset "
        "(LC25000), arXiv:1912.12142",
        licence="not stated upstream; as on the Kaggle page",
        source="https://www.kaggle.com/datasets/andrewmvd/lung-and-colon-cancer-histopathological-images",
        kaggle="andrewmvd/lung-and-colon-cancer-histopathological-images",
        size_gb=1.8,
        layout="lung_colon_image_set/{colon_image_sets,lung_image_sets}/{colon_aca,colon_n,lung_aca,lung_n,lung_scc}/*.jpeg",
        group_key="source tile, not in the file names",
        notes="1,250 tiles stand in about 20 rotated and flipped copies each: a random split "
        "leaks nearly every test image.",
    ),
    DatasetSpec(
        name="brain_tumor",
        title="Brain Tumor MRI",
        modality="brain MRI",
        color="L",
        flips="h",
        classes={
            "glioma": ("glioma_tumor",),
            "meningioma": ("meningioma_tumor",),
            "no tumor": ("notumor", "no_tumor", "nontumor", "normal", "healthy", "no"),
            "pituitary": ("pituitary_tumor",),
        },
        counts={"glioma": 1621, "meningioma": 1645, "no tumor": 2000, "pituitary": 1757},
        citation="Nickparvar (2021), Brain Tumor MRI Dataset, Kaggle, "
        "doi:10.34740/KAGGLE/DSV/2645886",
        licence="as on the Kaggle page (copies state CC0 and CC BY 4.0)",
        source="https://www.kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset",
        kaggle="masoudnickparvar/brain-tumor-mri-dataset",
        size_gb=0.15,
        layout="{Training,Testing}/{glioma,meningioma,notumor,pituitary}/*.jpg",
        official_split="Training / Testing",
        distrust="189 sets of byte-identical files and neighbouring slices of the same patients "
        "stand on both sides",
        group_key="patients are not in the file names (figshare, SARTAJ and Br35H mixed); "
        "neighbouring slices are searched for",
        notes="A later release on the same page holds 7,200 images; paper B's counts are those of "
        "the older one (7,023).",
    ),
    DatasetSpec(
        name="eye_disease",
        title="Eye Diseases",
        modality="fundus photograph",
        color="RGB",
        flips="h",
        classes={
            "cataract": (),
            "diabetic retinopathy": ("diabetic_retinopathy", "dr"),
            "glaucoma": (),
            "normal": ("healthy",),
        },
        counts={"cataract": 1038, "diabetic retinopathy": 1098, "glaucoma": 1007, "normal": 1074},
        citation="Doddi (2022), Eye diseases classification, Kaggle",
        licence="ODbL 1.0 (as stated in public copies)",
        source="https://www.kaggle.com/datasets/gunavenkatdoddi/eye-diseases-classification",
        kaggle="gunavenkatdoddi/eye-diseases-classification",
        size_gb=0.75,
        layout="dataset/{cataract,diabetic_retinopathy,glaucoma,normal}/*.{jpg,jpeg,png}",
        # .jpeg files come from another source than .jpg files: the same number there is another
        # person
        groups=((r"^(\d+)_(?:left|right)\.(\w+)$", "patient-{0}-{1}"),),
        group_key="patient (both eyes), where the name is <number>_<left|right>",
    ),
    DatasetSpec(
        name="alzheimer",
        title="Alzheimer's Dataset (4 classes)",
        modality="brain MRI",
        color="L",
        native_size=(176, 208),
        classes={
            "non demented": ("NonDemented", "Non"),
            "very mild dementia": ("VeryMildDemented", "VeryMildDementia", "VeryMild"),
            "mild dementia": ("MildDemented", "MildDementia", "Mild"),
            "moderate dementia": ("ModerateDemented", "ModerateDementia", "Moderate"),
        },
        counts={
            "non demented": 3200,
            "very mild dementia": 2240,
            "mild dementia": 896,
            "moderate dementia": 64,
        },
        citation="Dubey, Alzheimer's Dataset (4 class of images), Kaggle",
        licence="ODbL 1.0 (as stated in public copies)",
        source="https://www.kaggle.com/datasets/tourist55/alzheimers-dataset-4-class-of-images",
        kaggle="tourist55/alzheimers-dataset-4-class-of-images",
        size_gb=0.04,
        layout="Alzheimer_s Dataset/{train,test}/"
        "{MildDemented,ModerateDemented,NonDemented,VeryMildDemented}/*.jpg",
        official_split="train / test",
        distrust="slices of every subject stand on both sides",
        pooled=True,
        groups_of=numbering.alzheimer_subjects,
        group_key="the numbers in the file names tell; 200 subjects, 32 slices each",
        notes="The official test images are slices 27 to 32, and some of slice 26, of the 200 "
        "subjects whose other slices are the training images. Only two subjects have moderate "
        "dementia. Paper B used an augmented copy of about 34,000 images.",
    ),
    DatasetSpec(
        name="ham10000",
        title="HAM10000",
        modality="dermoscopy",
        color="RGB",
        flips="hv",
        classes={
            "actinic keratosis": ("akiec",),
            "basal cell carcinoma": ("bcc",),
            "benign keratosis": ("bkl",),
            "dermatofibroma": ("df",),
            "melanoma": ("mel",),
            "melanocytic nevus": ("nv",),
            "vascular lesion": ("vasc",),
        },
        # the 10,015 images of HAM10000, and the test images that ISIC 2018 put beside them
        counts={
            "actinic keratosis": 327 + 43,
            "basal cell carcinoma": 514 + 93,
            "benign keratosis": 1099 + 217,
            "dermatofibroma": 115 + 44,
            "melanoma": 1113 + 171,
            "melanocytic nevus": 6705 + 909,
            "vascular lesion": 142 + 35,
        },
        citation="Tschandl, Rosendahl & Kittler (2018), The HAM10000 dataset, a large collection "
        "of multi-source dermatoscopic images of common pigmented skin lesions, Scientific Data "
        "5:180161, doi:10.1038/sdata.2018.161",
        licence="CC BY-NC-SA 4.0",
        source="https://doi.org/10.7910/DVN/DBW86T",
        layout="**/ISIC_*.jpg, with the tables HAM10000_metadata.csv and, for the test images of "
        "ISIC 2018, ISIC2018_Task3_Test_GroundTruth.csv (image_id, lesion_id, dx)",
        official_split="HAM10000 / test images of ISIC 2018 task 3",
        tables=(("HAM10000_metadata", "train"), ("ISIC2018_Task3_Test_GroundTruth", "test")),
        group_key="lesions (lesion_id of the tables); patients are not published",
        notes="HAM10000 holds 10,015 images of 7,470 lesions, ISIC 2018 added 1,512 test images. "
        "More than half of the lesions are confirmed by histology.",
    ),
    DatasetSpec(
        name="wcebleedgen",
        title="WCEBleedGen",
        modality="capsule endoscopy",
        color="RGB",
        flips="hv",
        native_size=(224, 224),
        classes={"bleeding": (), "non-bleeding": ()},
        counts={"bleeding": 1309, "non-bleeding": 1309},
        citation="Handa et al. (2024), WCEBleedGen: A wireless capsule endoscopy dataset and its "
        "benchmarking for automatic bleeding classification, detection, and segmentation, "
        "arXiv:2408.12466",
        licence="as on the Zenodo page",
        source="https://zenodo.org/records/10156571",
        layout="WCEBleedGen/bleeding/Images/img- (<number>).png\n"
        "WCEBleedGen/non-bleeding/images/img- (<number>).png  (or img<number>.png)",
        groups_of=numbering.capsule_frames,
        group_key=f"blocks of {numbering.BLOCK} consecutive frames of a class; videos and "
        "patients are not stated",
        notes="Neighbouring numbers are neighbouring frames of a video, and some frames stand in "
        "it twice. Blocks leave a fifth of the frames with a neighbour in another block.",
    ),
    DatasetSpec(
        name="covid_ct",
        title="COVID-CT",
        modality="chest CT, slices from publications",
        color="RGB",
        classes={"COVID-19": ("CT_COVID", "COVID"), "non-COVID": ("CT_NonCOVID", "NonCOVID")},
        counts={"COVID-19": 349, "non-COVID": 397},
        citation="Zhao, Zhang, He & Xie (2020), COVID-CT-Dataset: a CT scan dataset about "
        "COVID-19, arXiv:2003.13865",
        licence="as on the GitHub page",
        source="https://github.com/UCSD-AI4H/COVID-CT",
        layout="Images-processed/{CT_COVID,CT_NonCOVID}/*.{png,jpg}, with the tables "
        "COVID-CT-MetaInfo.csv and NonCOVID-CT-MetaInfo.csv (patients), and the lists\n"
        "Data-split/{COVID,NonCOVID}/{train,val,test}CT_{COVID,NonCOVID}.txt",
        official_split="lists of Data-split, by patient",
        tables=(
            ("COVID-CT-MetaInfo", ""),
            ("NonCOVID-CT-MetaInfo", ""),
            *(
                (f"{part}CT_{kind}", part)
                for kind in ("COVID", "NonCOVID")
                for part in ("train", "val", "test")
            ),
        ),
        group_key="patients of its tables; the number of an article's patient says nothing of "
        "another article's",
        notes="Figures of articles and of websites, cut out and scaled: the classes differ in "
        "publisher, size and compression as well as in disease.",
    ),
    DatasetSpec(
        name="sars_cov_2_ct",
        title="SARS-CoV-2 CT",
        modality="chest CT, slices",
        color="RGB",
        classes={"COVID-19": ("COVID",), "non-COVID": ("non-COVID", "nonCOVID")},
        counts={"COVID-19": 1252, "non-COVID": 1230},
        citation="Soares et al. (2020), SARS-CoV-2 CT-scan dataset: A large dataset of real "
        "patients CT scans for SARS-CoV-2 identification, medRxiv, doi:10.1101/2020.04.24.20078584",
        licence="CC BY-NC-SA 4.0 (as on the Kaggle page)",
        source="https://www.kaggle.com/datasets/plameneduardo/sarscov2-ctscan-dataset",
        kaggle="plameneduardo/sarscov2-ctscan-dataset",
        size_gb=0.25,
        layout="{COVID,non-COVID}/*.png",
        distrust="no patients are published, and the colour mode of the files alone tells the "
        "class in 66% of the cases (413 of 1,252 COVID-19 files are RGB, all others RGBA)",
        group_key="none: 120 patients with about 20 slices each, who are not named",
        notes="A split by image puts slices of one patient on both sides; a split by groups keeps "
        "only those together that look alike. Statistics of grey values and sizes alone "
        "tell the class nearly as often as networks do: notebook 12 measures it.",
    ),
    DatasetSpec(
        name="lgg_mri",
        title="LGG MRI",
        modality="brain MRI (FLAIR with pre- and post-contrast)",
        color="RGB",
        flips="h",
        native_size=(256, 256),
        classes={"lesion": (), "no lesion": ()},
        counts={"lesion": 1373, "no lesion": 2556},
        citation="Buda, Saha & Mazurowski (2019), Association of genomic subtypes of lower-grade "
        "gliomas with shape features automatically extracted by a deep learning algorithm, "
        "Computers in Biology and Medicine 109:218-225, doi:10.1016/j.compbiomed.2019.05.002",
        licence="CC BY-NC-SA 4.0",
        source="https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation",
        kaggle="mateuszbuda/lgg-mri-segmentation",
        size_gb=0.75,
        layout="kaggle_3m/TCGA_<institution>_<patient>_<date>/*_<slice>.tif, "
        "with *_<slice>_mask.tif",
        by_masks=True,
        trees=("kaggle_3m", "lgg-mri-segmentation"),  # Kaggle's copy holds all images twice
        # slices at either end of a head show next to nothing, and look like copies in all patients
        patients_known=True,
        groups=((r"^(TCGA_\w+?_\w+?)_\d{8}_\d+\.tif", "{0}"),),
        group_key="patient, as the file names state",
        notes="110 patients of The Cancer Genome Atlas; the class says whether a slice shows the "
        "tumour. Missing sequences are replaced by FLAIR.",
    ),
    DatasetSpec(
        name="kvasir_seg",
        title="Kvasir-SEG",
        modality="colonoscopy",
        color="RGB",
        flips="hv",
        classes={"lesion": ()},
        counts={"lesion": 1000},
        citation="Jha et al. (2020), Kvasir-SEG: a segmented polyp dataset, MultiMedia Modeling, "
        "arXiv:1911.07069",
        licence="research and education, as on its page",
        source="https://datasets.simula.no/kvasir-seg/",
        layout="images/*.jpg, masks/*.jpg of the same names",
        by_masks=True,
        group_key="not stated: patients are not in the file names",
        notes="Every image shows a polyp, so it serves segmentation alone (notebook 13).",
    ),
    DatasetSpec(
        name="folder",
        title="Your own images",
        modality="any",
        classes={},
        citation="yours",
        licence="yours",
        source="the folder given as data_root",
        group_key="none",
        layout="<root>/<class>/*.png  or  <root>/{train,val,test}/<class>/*.png  "
        "(masks: <class>/lesion masks/<same name>), or a table of labels (-p labels)",
        official_split="train / val / test folders, where there are any",
    ),
)

DATASETS: dict[str, DatasetSpec] = {entry.name: entry for entry in _ENTRIES}

# modality of the sets of the medmnist package, whose own description is a paragraph
# (Yang et al. 2023, doi:10.1038/s41597-022-01721-8, table 1)
MEDMNIST = {
    "pathmnist": "colon pathology",
    "dermamnist": "dermoscopy",
    "octmnist": "retinal OCT",
    "pneumoniamnist": "chest radiograph",
    "retinamnist": "fundus photograph",
    "breastmnist": "breast ultrasound",
    "bloodmnist": "blood cell microscopy",
    "tissuemnist": "kidney cortex microscopy",
    "organamnist": "abdominal CT",
    "organcmnist": "abdominal CT",
    "organsmnist": "abdominal CT",
}
