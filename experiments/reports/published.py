"""Published accuracies and the protocols they were taken under, as data.

Transcribed from the papers, READMEs and issue threads named in SOURCES: no number and no setting
here is ours. What a source leaves open is left out, or marked as a guess where other evidence (the
authors' code, or the code it builds on) suggests it. Figures are percent; nearly all were taken at
the best epoch on the test set, so a run's `best*` is what compares with them, not its last epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# -2nd: a secondary source, whose figures are unverified.
SOURCES = {
    "P": "Zhou et al., ImbSAM, ICCV 2023",
    "IMB": "ImbSAM's release, cool-xuan/Imbalanced_SAM",
    "RDR": "Luo et al., Revive Re-weighting, NeurIPS 2024",
    "SSE": "SSE-SAM's release, Zemdalk/SSE-SAM",
    "CCS": "CC-SAM's release, zzpustc/CC-SAM",
    "CCS-2nd": "CC-SAM, CVPR 2023, by two secondary digests that agree",
    "FOC-2nd": "Focal-SAM, ICML 2025, by a public leaderboard page",
    "SAD": "val-iisc/Saddle-LongTail",
    "WB": "weight balancing's release, ShadeAlsha/LTR-weight-balancing",
    "WB-2nd": "weight balancing, CVPR 2022, by paperswithcode",
    "DEC": "facebookresearch/classifier-balancing",
    "LAG": "google-research, logit_adjustment",
    "OLT": "liming-ai/OpenLT",
    "OFBD": "preprint OFBD",
}


class Protocol(NamedTuple):
    """How figures were taken: where that is stated, how the reported epoch was chosen, settings.

    A line of settings is data sets, or * for all that have a line, and name=value pairs: a|b is
    either, ? a guess, rule.name an argument of that rule, and perturbed.name one of every rule but
    sgd and cc_sam. `seed` is that of the one run, where it is known.
    """

    says: str
    chosen: str = "not stated"
    settings: str = ""
    seed: int | None = None


_BEST = "best epoch on the test set"
_FLIP = _BEST + ", flip-averaged"
_COMMON = "batch_size=64 lr=0.01 epochs=200 schedule=cosine-prestep subset=first"

PROTOCOLS = {
    "imbsam-paper": Protocol(
        'Section 4.1 of the paper: SGD, rho 0.05, eta 100. Its "ResNet32" is ResNet-34 with a 3x3 '
        "stem, by its authors' word in issue 1. Learning rate, schedule, weight decay and subset "
        "are not printed: guessed from its release and from weight balancing",
        _FLIP + " (by the released code; the paper does not say)",
        """
* momentum=0.9 epochs=200 sam.rho=0.05 imbsam.rho=0.05 imbsam.eta=100 imbsam.tail_scale=1
* reweighted_sam.rho=0.05
cifar100 model=resnet34_3x3 batch_size=64 lr=0.01? schedule=cosine-prestep? weight_decay=0.005?
cifar100 subset=first?
imagenet model=resnext50_32x4d batch_size=64
inaturalist2018 model=resnet50 batch_size=512""",
    ),
    "imbsam-release": Protocol(
        "The released code as it stands: weight decay 1e-3, tail n < eta, tail loss times 2 since "
        "September 2023; its default eta is 20",
        _FLIP,
        f"""
cifar100 model=resnet34_3x3 {_COMMON} momentum=0.9 weight_decay=0.001 imbsam.strict=True
cifar100 imbsam.tail_scale=2 perturbed.running_statistics=every""",
        seed=9826,
    ),
    "weight-balancing": Protocol(
        "Its notebooks: 320 epochs (200 in the paper, its author says), weight decay 5e-3; the "
        "second stage trains the classifier for 10 epochs with weight decay 0.1",
        _FLIP,
        """
cifar100 model=resnet34_3x3 batch_size=64 lr=0.01 momentum=0.9 weight_decay=0.005 epochs=320
cifar100 schedule=cosine-prestep subset=first""",
        seed=0,
    ),
    "density-ratio": Protocol(
        "One protocol for all methods, with their official code (CC-SAM's has two stages). Splits "
        "are slices of the class index: 35/34/31 classes of CIFAR-100-LT, 3/4/3 of CIFAR-10-LT",
        settings="""
cifar10,cifar100 model=resnet32 batch_size=128 lr=0.1 weight_decay=0.0002 epochs=200
cifar10,cifar100 schedule=cosine|cosine-prestep
imagenet model=resnet50""",
    ),
    "sse-sam-release": Protocol(
        "README and code, a fork of ImbSAM's with weight decay 1e-3. Its own ImbSAM takes means "
        "over head rows and over tail rows",
        "best of every tenth epoch on the test set",
        f"""
cifar100 model=resnet34_3x3 {_COMMON} weight_decay=0.001 perturbed.running_statistics=every
cifar100 sse_sam.eta=100 sse_sam.head_rho=0.05 sse_sam.tail_rho=0.1 sse_sam.switch_epoch=140
cifar100 imbsam.group_mean=True""",
        seed=9826,
    ),
    "focal-sam": Protocol(
        "Released scripts, imbalance factor 100. Settings of other losses and factors, and the "
        "loss of the published figures, were not found",
        settings="""
* loss=logit_adjusted epochs=200 schedule=cosine perturbed.running_statistics=every
cifar10,cifar100 model=resnet32 batch_size=64 lr=0.1 subset=shuffled subset_seed=0
cifar10 weight_decay=0.0002 focal_sam.rho=0.2 focal_sam.gamma=3 focal_sam.strength=0.5
cifar100 weight_decay=0.001 focal_sam.rho=0.3 focal_sam.gamma=3.2 focal_sam.strength=0.8
imagenet model=resnet50 batch_size=256 lr=0.1 weight_decay=0.0005 focal_sam.gamma=0.8
imagenet focal_sam.strength=0.8
inaturalist2018 model=resnet50 batch_size=512 lr=0.2 weight_decay=0.0002 focal_sam.gamma=2
inaturalist2018 focal_sam.strength=1.1""",
        seed=0,
    ),
    "cc-sam": Protocol(
        "The paper, two stages; what it leaves open is guessed from its release, whose author says "
        "in issue 4 that the paper's figures also need AutoAugment",
        settings="""
* momentum=0.9
cifar10,cifar100 batch_size=64 model=resnet32? lr=0.1? weight_decay=0.0002? epochs=200?
cifar10,cifar100 schedule=warmup-steps?
imagenet model=resnext50_32x4d batch_size=256
places model=resnet152 batch_size=128
inaturalist2018 model=resnet50 batch_size=512""",
    ),
    "cc-sam-release": Protocol(
        "The released code, 200 and 30 epochs: the perturbation is scaled by 1e-6, that is, hardly "
        "there, and its ResNet-32 is 30 layers deep",
        settings="""
cifar10,cifar100 model=resnet30 batch_size=64 lr=0.1 momentum=0.9 weight_decay=0.0002 epochs=200
cifar10,cifar100 schedule=warmup-steps mixup=1 cc_sam.cc_variant=release cc_sam.noise_ratio=1e-6
cifar10 cc_sam.flat_ratio=0.3
cifar100 cc_sam.flat_ratio=0.5""",
        seed=42,
    ),
    "saddle": Protocol(
        "README and code, LDAM's recipe; the radius of SAM depends on data and loss",
        _BEST,
        """
* perturbed.running_statistics=every
cifar10,cifar100 model=resnet32 batch_size=128 lr=0.1 momentum=0.9 weight_decay=0.0002
cifar10,cifar100 epochs=200 schedule=steps subset=shuffled subset_seed=0
imagenet model=resnet50 batch_size=256 lr=0.2 weight_decay=0.0002 epochs=90 schedule=cosine
inaturalist2018 model=resnet50 batch_size=256 lr=0.1 epochs=90""",
        seed=0,
    ),
    "decoupling": Protocol(
        "README: ResNeXt-50 from scratch, then the classifier alone",
        "best epoch on the validation set",
        """
imagenet model=resnext50_32x4d batch_size=512 lr=0.2 momentum=0.9 weight_decay=0.0005 epochs=90
imagenet schedule=cosine-prestep""",
    ),
    "logit-adjustment": Protocol(
        'README: a "ResNet-32" of bottlenecks, Nesterov momentum, steps after a warm-up',
        settings="""
* model=bottleneck-resnet32 batch_size=128 lr=0.1 momentum=0.9
cifar10 epochs=1241
cifar100 epochs=1419""",
    ),
    "imbsam-mindspore": Protocol("The MindSpore port, tail loss times 2, MindSpore's cosine"),
    "openlt": Protocol("README", settings="imagenet model=resnet50"),
    "ofbd": Protocol("Preprint", settings="cifar10,cifar100 model=resnet32"),
    "quoted": Protocol("Quoted by that source from elsewhere"),
}


class Row(NamedTuple):
    """One published figure, or the four of its splits; None where not printed.

    The imbalance factor is as the source names it, None where the set is natural. Rule, loss (with
    "+drw" where re-weighting is deferred; None where it is not stated) and recipe (a second stage)
    have this project's names; other methods are sgd with the method's name as recipe. `overrides`
    is what the row has instead of the protocol's settings.
    """

    dataset: str
    imbalance_factor: int | None
    rule: str
    loss: str | None
    recipe: str | None
    many: float | None
    medium: float | None
    few: float | None
    all: float
    source: str
    table: str
    protocol: str
    overrides: Mapping[str, Any]
    note: str

    @property
    def verified(self) -> bool:
        """Read in the source itself."""
        return not self.source.endswith("-2nd")

    @property
    def chosen(self) -> str:
        """How the reported epoch was chosen."""
        without_flip = self.table == "logs of the notebooks"
        return _BEST if without_flip else PROTOCOLS[self.protocol].chosen


def beside(facts: Mapping[str, Any]) -> list[Row]:
    """The published rows of a run's data, rule, loss and second stage.

    Args:
      facts: what is known of the run, flat: "dataset", "imbalance_factor" (largest over smallest
        class), "rule", "loss" (with "+drw"), "stage2", the dict "ascent", and its settings and
        arguments of the rule by name; of shrunk images, or of a "subset" None that nobody knows,
        there are no such rows.
    """
    if facts.get("shrink", 1) != 1 or facts.get("subset", "first") is None:
        return []  # other images, or nobody knows which
    found = [row for row in ROWS if row.dataset == _dataset(facts) and _same_factor(facts, row)]
    found = [r for r in found if (r.rule, r.recipe) == (facts["rule"], facts["stage2"])]
    found = [r for r in found if r.loss in (None, facts["loss"])]
    return [r for r in found if r.overrides.get("tail_weight") == facts.get("tail_weight")]


def differences(
    facts: Mapping[str, Any], protocol: str, overrides: Mapping[str, Any] = {}
) -> list[str]:
    """In what a run differs from a protocol, as far as that is known; `facts` as of `beside`."""
    stated = {**_expected(facts, protocol), **{k: ((v,), False) for k, v in overrides.items()}}
    if not stated:
        return ["its settings are not known"]
    usual: dict[str, Any] = {k: (allowed, False) for k, allowed in _USUAL.items()}
    found = []
    for name, (allowed, guessed) in sorted({**usual, **stated}.items(), key=_place):
        if facts.get(name) not in allowed:
            theirs = " or ".join(map(text, allowed)) + " (a guess)" * guessed
            own = facts.get(name)
            known = f"{name} {text(own)}, not {theirs}"
            found.append(f"{name} not known, theirs {theirs}" if own is None else known)
    # The passes that move running statistics are told apart only where a protocol names them.
    beyond = facts["ascent"].keys() - stated.keys() - {"running_statistics"}
    return found + [f"{name} {text(facts['ascent'][name])}" for name in sorted(beyond)]


def marks(facts: Mapping[str, Any]) -> list[str]:
    """The protocols whose settings, guesses too, a run shares, of those known well enough."""
    identifying = {"model", "batch_size", "lr", "epochs"}
    known = [name for name in PROTOCOLS if identifying <= _expected(facts, name).keys()]
    return [name for name in known if not differences(facts, name)]


def text(value: Any) -> str:
    """As in tables: no more digits than needed."""
    return f"{value:g}" if isinstance(value, float) else str(value)


_LARGEST = {"cifar10": 5000, "cifar100": 500}
# What every protocol is taken to have unless it says otherwise.
_USUAL: dict[str, tuple[Any, ...]] = {
    "val_per_class": (0,), "mixup": (0.0,), "augment": (True,), "sampling": ("natural",),
    # Independent examples change no number, split_norm does.
    "examples": ("dependent", "independent"), "memory": (None,), "shrink": (1,),
}  # fmt: skip


def _place(item: tuple[str, Any]) -> int:
    order = ("model", "epochs", "batch_size", "lr", "schedule", "weight_decay")
    return order.index(item[0]) if item[0] in order else len(order)


def _same_factor(facts: Mapping[str, Any], row: Row) -> bool:
    factors = {row.imbalance_factor}
    if row.imbalance_factor and row.dataset in _LARGEST:
        # The smallest class is a whole number: of 500 images, factor 200 leaves 2, which is 250.
        largest = _LARGEST[row.dataset]
        factors.add(round(largest / (largest // row.imbalance_factor)))
    return not factors.isdisjoint({None, round(facts["imbalance_factor"])})


def _dataset(facts: Mapping[str, Any]) -> str:
    name = str(facts["dataset"]).lower().replace("-", "_").removesuffix("_lt")
    return name.replace("i_naturalist", "inaturalist")


def _expected(facts: Mapping[str, Any], protocol: str) -> dict[str, tuple[tuple[Any, ...], bool]]:
    """What a run of that data and rule has to have: name -> (any of these, is it a guess)."""
    rule = facts["rule"]
    prefixes = {"", rule} if rule in ("sgd", "cc_sam") else {"", rule, "perturbed"}
    dataset, pairs, known = _dataset(facts), [], False
    for line in PROTOCOLS[protocol].settings.strip().splitlines():
        datasets, *settings = line.split()
        known |= dataset in datasets.split(",")
        if datasets == "*" or dataset in datasets.split(","):
            pairs += [setting.split("=") for setting in settings]
    return {
        key.rpartition(".")[2]: (
            tuple(map(_value, value.removesuffix("?").split("|"))),
            value.endswith("?"),
        )
        for key, value in pairs * known
        if key.rpartition(".")[0] in prefixes
    }


def _value(word: str) -> Any:
    if word in _SHORT:
        return _SHORT[word]
    try:
        return float(word)
    except ValueError:
        return word


_SHORT = {
    "-": None, "True": True, "CE": "cross_entropy", "CE+drw": "cross_entropy+drw",
    "LA": "logit_adjusted", "CB": "class_balanced", "WB": "weight-balancing",
}  # fmt: skip


def _parsed(table: str) -> list[Row]:
    """The rows of blocks like those below."""
    rows: list[Row] = []
    for line in table.strip().splitlines():
        records, _, note = (part.strip() for part in line.partition("#"))
        if records.startswith("["):
            *cited, settings = records[1:-1].split(", ")
            places, of_block = [place.partition(":") for place in settings.split()], note
            continue
        for record in records.split(";"):
            method, loss, recipe, *figures = map(_value, record.split())
            rule, _, given = method.partition(":")
            pairs = [pair.split("=") for pair in given.split(",") if pair]
            width, rest = divmod(len(figures), len(places))
            if rest or width not in (1, 4):
                raise ValueError(f"{cited}: {record!r} does not fill {settings}")
            for i, (dataset, _, factor) in enumerate(places):
                here = [*[None] * (4 - width), *figures[i * width : (i + 1) * width]]
                values: list[Any] = [dataset, int(factor) if factor else None, rule, loss, recipe]
                values += [*here, *cited, {k: _value(v) for k, v in pairs}, note or of_block]
                if here[-1] is not None:
                    rows.append(Row(*values))
    return rows


# A block is [source, where, protocol, dataset:factor ...] # note of all its lines
# and a line is records `rule[:override=value,...] loss recipe figures; ...` # note
# with, for each dataset:factor in turn, the figures many medium few all, or all alone.
ROWS = _parsed("""
[P, Table 3, imbsam-paper, cifar100:100]
sgd CE - 77.8 46.6 13.5 47.6 # also in Table 1
sam CE - 79.7 49.3 12.4 48.9
reweighted_sam:tail_weight=2 CE - 79.4 49.1 12.3 48.7
reweighted_sam:tail_weight=3 CE - 79.9 48.9 13.4 49.1
reweighted_sam:tail_weight=5 CE - 79.5 49.2 13.2 49.0
reweighted_sam:tail_weight=10 CE - 79.7 48.6 13.1 48.8
reweighted_sam:tail_weight=20 CE - 80.1 48.7 13.5 49.1
imbsam CE - 75.9 53.5 19.4 51.1 # also in Table 1
sgd CE WB 68.5 49.1 35.9 51.9 # LTR; also in Table 1
sam CE WB 76.1 54.6 25.3 53.3 # LTR
imbsam CE WB 64.1 58.6 39.4 54.8 # LTR; also in Table 1
[P, Table 1, imbsam-paper, cifar100:50 cifar100:10]
sgd CE - 52.8 66.9
imbsam CE - 56.4 69.2; sgd CE WB 56.7 68.9
imbsam CE WB 59.3 69.7
[P, Table 1, quoted, cifar100:100 cifar100:50 cifar100:10]
sgd CB - 39.6 45.2 58.0; sgd - KD 40.4 45.5 59.2; sgd ldam+drw - 42.0 46.6 58.7
sgd - BBN 42.6 47.0 58.7; sgd - De-confound 44.1 50.3 59.6
sgd CE tau-norm 47.7 52.5 63.8; sgd - DiVE 45.4 51.1 62.0
sgd - DRO-LT 47.3 57.6 63.4
sgd - SSD 46.0 50.5 62.3 # with bells and whistles
sgd - PaCO 52.0 56.0 64.2 # with bells and whistles
sgd - ACE 49.6 51.9 - # with bells and whistles
[P, Table 2, imbsam-paper, imagenet inaturalist2018]
sgd CE - 69.3 41.7 10.3 48.2 75.4 66.9 61.7 65.7
sam CE - 70.0 41.1 10.2 48.2 75.6 66.7 61.8 65.7
imbsam CE - 68.5 47.5 21.6 52.2 73.5 69.2 67.9 69.1
sgd CE lws 64.1 49.1 31.2 52.5 71.7 69.4 68.7 69.4
sam CE lws 64.0 48.8 30.5 52.3 71.7 69.6 68.8 69.5
imbsam CE lws 63.2 53.7 38.3 55.3 68.2 72.5 72.9 71.1
[P, Table 2, quoted, imagenet inaturalist2018]
sgd CB - 39.6 32.7 16.8 33.2 53.4 54.8 53.2 54.0
sgd CE tau-norm 59.1 46.9 30.7 49.4 65.6 65.3 65.5 65.6
sgd - DiVE 64.1 50.4 31.5 53.1 70.6 70.0 67.7 69.1
sgd - DRO-LT 64.0 49.8 33.1 53.5 - - - 69.7
sgd - DisAlign 61.3 52.2 31.4 52.9 69.0 71.1 70.2 70.6
sgd CE WB 62.5 50.4 41.5 53.9 71.2 70.4 69.7 70.2
sgd - PaCO 63.2 51.6 39.2 54.4 69.5 72.3 73.1 72.3 # with bells and whistles
sgd - SSD 66.8 53.1 35.4 56.0 - - - 71.5 # with bells and whistles
sgd - RIDE 67.9 52.3 36.0 56.1 66.5 72.1 71.5 71.3 # with bells and whistles
[IMB, README, imbsam-release, cifar100:100]
imbsam CE - 51.6 # said of the released checkpoint, whose settings are not known to us
[IMB, issue 1, imbsam-release, cifar100:100]
imbsam:tail_scale=1 CE - 42.5 # a user's rerun of the first release
imbsam:tail_scale=1,model=resnet32 CE - 38.6 # a user's rerun of the first release
[IMB, MindSpore README, imbsam-mindspore, cifar100:100]
sgd CE - 65.2 32.9 7.3 36.5
sam CE - 67.5 34.6 7.6 38.0
imbsam CE - 63.2 43.4 11.4 40.7
[SSE, README, sse-sam-release, cifar100:100]
sgd CE - 74.3 43.1 11.6 44.6
sam CE - 75.3 45.6 12.9 46.2
imbsam CE - 72.3 50.4 16.6 47.9 # by its own ImbSAM (group means), or one not known
sse_sam CE - 71.7 54.5 17.1 49.3
[CCS, issue 4, cc-sam-release, cifar10:100]
cc_sam - cc-sam 74.04 # a user's rerun of the released code
[CCS-2nd, -, cc-sam, cifar10:200 cifar10:100 cifar10:50 cifar100:200 cifar100:100 cifar100:50]
cc_sam - cc-sam 80.94 83.92 86.22 45.66 50.83 53.91
[CCS-2nd, -, cc-sam, imagenet places inaturalist2018]
cc_sam - cc-sam - - 41.1 55.4 - - 36.4 40.6 - - 72.2 70.9
[FOC-2nd, -, focal-sam, cifar10:200 cifar10:100 cifar10:50 cifar100:100 cifar100:50]
focal_sam - - 71.7 77.2 82.0 44.0 48.1 # its loss is not stated
[FOC-2nd, -, focal-sam, imagenet inaturalist2018]
focal_sam - - 54.3 71.8 # its loss is not stated
[SAD, README, saddle, cifar10:100 cifar100:100]
sam:rho=0.8 ldam+drw - 81.9 45.4
sam:rho=0.5 CE+drw - 80.6 -
sam:rho=0.8 CE+drw - - 44.6
[SAD, README, saddle, imagenet inaturalist2018]
sam ldam+drw - 53.1 -
sam:weight_decay=1e-4 ldam+drw - - 70.1
sam CE+drw - 47.1 -
sam:weight_decay=2e-4 CE+drw - - 65.3
[SAD, README, quoted, cifar10:50 cifar10:100 cifar100:50 cifar100:100]
sgd - GLMC 89.81 87.55 62.49 57.63
sam - GLMC 91.56 89.18 65.28 59.01
[WB, notebooks, weight-balancing, cifar100:100]
sgd:weight_decay=0 CE - 67.4 38.1 10.4 40.0
sgd CE - 78.0 46.9 13.9 47.9
sgd CE tau-norm 77.0 50.3 21.6 51.0 # rows of norm 1, that is, tau 1
sgd CE tau-norm 74.1 48.8 32.0 52.6 # tau 1.9
sgd CE WB 72.2 49.6 34.9 53.1 # with MaxNorm
[WB, logs of the notebooks, weight-balancing, cifar100:100]
sgd:weight_decay=0 CE - 39.6; sgd CE - 47.2; sgd CE WB 52.0
[WB-2nd, -, weight-balancing, cifar100:10]
sgd CE WB 68.67
[DEC, README, decoupling, imagenet]
sgd CE - 65.9 37.5 7.7 44.4
sgd CE NCM 56.6 45.3 28.1 47.3
sgd CE crt 61.8 46.2 27.4 49.6
sgd CE tau-norm 59.1 46.9 30.7 49.4
sgd CE lws 60.2 47.2 30.3 49.9
sgd CE class-balanced-sampling 61.8 40.1 15.5 45.1
sgd CE square-root-sampling 64.3 41.2 17.0 46.8
sgd CE progressive-sampling 61.9 43.2 19.4 47.2
[LAG, README, logit-adjustment, cifar10:100 cifar100:100]
sgd CE - 71.36 39.87; sgd CE logit-adjustment 77.32 44.07; sgd LA - 77.89 44.06
[OLT, README, quoted, cifar100:100 imagenet] # column of reported figures
sgd CE - 39.1 41.6; sgd ldam+drw - 42.04 48.8; sgd LA - 43.89 -
sgd - balanced-softmax 45.1 -; sgd CE crt - 47.3; sgd CE lws - 47.7
[OLT, README, openlt, cifar100:100 imagenet] # column of its own runs
sgd CE - 40.3 43.2; sgd ldam+drw - 42.9 51.2; sgd LA - 45.3 -
sgd - balanced-softmax 46.47 -; sgd CE crt - 48.7; sgd CE lws - 49.3
[RDR, Tables 2 and 4, density-ratio, cifar10:100 cifar10:10 cifar100:100 cifar100:10]
sam CE - 94.8 74.5 60.6 76.4 95.8 85.9 86.5 89.3 72.7 40.3 7.5 41.5 75.3 60.2 45.1 60.8
imbsam CE - 94.6 73.9 67.7 78.3 94.2 84.1 90.1 89.0 71.5 40.6 17.7 44.3 72.5 57.9 53.5 61.7
cc_sam CE cc-sam 85.6 79.2 80.3 81.4 90.6 85.3 90.8 88.5 61.5 50.8 29.7 48.0 62.8 59.3 54.5 59.0
sam LA - 90.8 78.1 82.9 83.3 92.6 86.5 91.8 89.9 64.3 50.5 30.8 49.2 66.1 60.9 59.7 62.3
imbsam LA - 85.2 75.1 89.6 82.5 90.8 83.6 94.8 89.1 58.8 45.4 40.1 48.4 62.9 56.6 64.2 61.2
cc_sam LA cc-sam 85.8 77.8 80.5 81.0 90.7 82.4 90.8 87.4 57.7 48.9 29.0 45.8 61.0 57.8 51.9 57.1
[RDR, Tables 2 and 4, density-ratio, imagenet places]
sam CE - 64.6 35.8 10.1 42.8 45.2 27.6 12.1 30.6
imbsam CE - 62.5 37.3 13.9 43.3 43.1 26.2 16.1 30.1
cc_sam CE cc-sam 54.1 44.1 30.8 45.8 40.4 39.7 31.7 38.2
sam LA - 39.6 45.9 39.1 42.3 42.5 41.9 35.5 40.8
imbsam LA - 56.1 45.1 37.9 48.2 38.6 35.8 40.4 37.8
cc_sam LA cc-sam 52.2 43.9 32.8 45.3 32.1 41.4 40.9 37.9
[RDR, Table 1, density-ratio, cifar10:10 cifar10:100 cifar100:10 cifar100:100 imagenet places]
sgd CE - 88.9 75.6 59.3 42.7 43.2 29.3
sgd focal - 89.0 76.0 59.7 43.0 43.8 29.5
sgd CB - 89.0 76.7 60.4 43.5 43.8 32.5
sgd LA - 89.2 82.2 62.3 48.2 47.9 37.5
[RDR, Table 7, density-ratio, cifar10:500 cifar10:200 cifar100:500 cifar100:200]
sgd CE - 60.1 68.6 34.1 37.9
sam CE - 60.4 69.9 34.5 39.0
sgd LA - 73.9 76.7 38.8 44.0
sam LA - 74.9 80.2 39.6 44.2
[OFBD, -, ofbd, cifar100:100]
sgd CE - 65.19 37.06 9.14 38.32
sgd ldam+drw - 61.51 41.67 20.22 42.09
[OFBD, -, ofbd, cifar100:50 cifar100:10 cifar10:100 cifar10:50 cifar10:10]
sgd CE - 43.94 55.71 70.45 74.82 86.44
sgd ldam+drw - 46.57 58.64 77.06 81.09 88.02
""")
