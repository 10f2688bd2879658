"""The published lists of labelled images: which of them a run uses, and whether it is the one that the run claims.

A list is known by the SHA-256 of its sorted ids (splits.list_sha256), whatever its file's format and order. The lists
themselves are no part of the library: they come with the projects named here.
"""

from typing import NamedTuple

from forec_jax.data.source import DataError
from forec_jax.data.splits import Split, list_sha256


class PublishedList(NamedTuple):
    """A labelled list that papers report numbers for."""

    name: str  # as data.protocol names it: data set/family/number of images
    origins: str  # the projects that it comes with
    images: int
    sha256: str

    @property
    def dataset(self) -> str:
        """The data set that the list is of."""
        return self.name.partition("/")[0]


class Pool(NamedTuple):
    """The training images that the labelled and the unlabelled part of a protocol are together."""

    description: str
    images: int
    sha256: str  # empty where only the number of images is certain


def _family(name: str, origins: str, sums: dict[int, str]) -> tuple[PublishedList, ...]:
    return tuple(PublishedList(f"{name}/{count}", origins, count, sha256) for count, sha256 in sums.items())


LISTS = (
    *_family(
        "voc/classic",  # drawn from VOC's own training images
        "PseudoSeg, TorchSemiSeg (CPS), PS-MT, ST++, U2PL, UniMatch",
        {
            92: "124b0aab2fcd1767214bf465d8fa24dd179c3abe99951a063a92d11c48663987",
            183: "79b959bccf7753cd70bba8d5abdb7e9c0f16df053ce458916ae19a897149136d",
            366: "f0e702c687e2ba711cb726ace02e2bb0b5571fd73bb3e2419441cd53c196416b",
            1464: "129f1fe991729b1862115b77738c938c149c1f167baa02b4b3186aea9f0d6a84",  # all of train
        },
    ),
    *_family(
        "voc/classic_u2pl",  # the classic 732 was published in two versions
        "ST++, U2PL, UniMatch",
        {732: "8c23014f512884b9ef51e91113e69b7197de6e53c699019956d3874998a005b0"},
    ),
    *_family(
        "voc/classic_cps",
        "TorchSemiSeg (CPS), PS-MT",
        {732: "1c27978cdf51017454c1d23e5e93c7e509ef1bb49acd62522ea5392e632e1074"},
    ),
    *_family(
        "voc/priority",  # images with VOC's own masks first
        "U2PL, PS-MT (6620, 13230, ...), UniMatch (u2pl_1_16, u2pl_1_8, ...)",
        {
            662: "feea4692738362e449721faff842a3aa103bf984f7d6dd748eeb511a6f722fe5",
            1323: "23921931a21324cfefdf4c67d4d2119d73c2c599bee9a95684ed802c2d134916",
            2646: "d35f7cd4b4815e1d83809e2acd19fe536e92319823a8a83353f20e68b2f96899",
            5291: "aacb97f26e9468b4eb3c6403cb39ab0c5fa0f6bd63b292f61e6ee5dfacfd5fc6",
        },
    ),
    *_family(
        "voc/blended",  # mostly SBD's masks
        "TorchSemiSeg (CPS), PS-MT (662, 1323, ...), UniMatch (1_16, 1_8, ...)",
        {
            662: "baa85754594fcd33c7f06d9ef173db9f70a0c32f826a2958668ee406db9f7c5a",
            1323: "c9ca45b4e688d408cd0856e9d17bdf99a8c9bd1de09d33023e578cdb9a49f1a3",
            2646: "fd0e8dca3dac524cf3b8c2b8540bc67bac1fb5df93e562faf35232e90c444295",
            5291: "5338f277730143e02973ac654d6f0fb43e6758bd22769161397c42f08c818e0b",
        },
    ),
    *_family(
        "cityscapes/u2pl",
        "U2PL",
        {
            186: "f20f7c7dea9c3a2eccb63557def1c1936a4124e166e3d4dd88be603e6fc0f906",
            372: "f13edf481be983d5f1881609f1db995bc5f8eda6789a0e6cd1532691f31ab878",
            744: "7d0cfd6f5390d26ddd4f786a19c5ea875f179e581234eeaba451e1b32f76c4eb",
            1488: "c6122be0439bfc0d28f856ecaa318f6e5550ba180345a5deedf580089f804f1b",
        },
    ),
    *_family(
        "cityscapes/cps",
        "TorchSemiSeg (CPS), PS-MT, UniMatch",
        {
            186: "1e5363dd012cdc467f638ea0ab2cd0315cc7243146c81b47e12e9bb97c50266c",
            372: "6b3b52bab110157aaefa270df014ee4d3a035330c575e2386a5cc635ee01df63",
            744: "6856046a4415296a575f0fa65ec9757c6c26cc1044d4e93534b01b60921e2b80",
            1488: "2b3183629a3a9f1a1e9b4a8eb3296e53c957a0aa4d4f986a2b29aa9da339deef",
        },
    ),
    *_family(
        "cityscapes/unimatch",
        "UniMatch (1_30)",
        {100: "c4164038958f8c8e792f7049a650cd9e648cab8816e0ae687914255345f9469d"},
    ),
)
"""Every published list that the library knows. Names never change: results carry them."""

POOLS = {
    "voc": Pool(
        "train_aug", 10582, "855dff350b7f447bf43cb98ea626a32e0d0b3b7c5786e03b2712a21355b635bf"
    ),  # VOC's train and SBD's images, without those of VOC's val
    "cityscapes": Pool("train", 2975, ""),
}
"""By data set, the pool that every published list is labelled in: its rest is the unlabelled part."""


def published_name(sha256: str) -> str:
    """The name of the published list with this sum of labelled ids; empty where none has it."""
    return next((known.name for known in LISTS if known.sha256 == sha256), "")


def published_origins(name: str) -> str:
    """The projects that a published list comes with."""
    return next(known.origins for known in LISTS if known.name == name)


def protocol_names() -> tuple[str, ...]:
    """The values of data.protocol that claim something."""
    return tuple(known.name for known in LISTS)


def check_protocol(claim: str, split: Split) -> None:
    """Raises DataError where a split is not what `claim`, a published list's name, promises.

    The labelled part must be that list. Where there is an unlabelled part, both together must be the published pool;
    without one (supervised rows of the tables) the pool does not matter.
    """
    known = next(known for known in LISTS if known.name == claim)
    if split.sha256 != known.sha256:
        actual = published_name(split.sha256)
        raise DataError(
            f"data.protocol={claim}: the labelled part {split.name} is {actual or 'another list'} "
            f"({len(split.labelled)} images, SHA-256 {split.sha256}), {claim} has {known.images} images and SHA-256 "
            f"{known.sha256}; set data.labelled to the list published with {known.origins}, "
            f"or data.protocol to {actual!r}"
        )
    if split.unlabelled:
        _check_pool(claim, POOLS[known.dataset], split.labelled + split.unlabelled)


def _check_pool(claim: str, pool: Pool, ids: tuple[str, ...]) -> None:
    sha256 = list_sha256(ids)
    if len(ids) != pool.images or pool.sha256 not in ("", sha256):
        published = f"{pool.images} images" + (f" and SHA-256 {pool.sha256}" if pool.sha256 else "")
        raise DataError(
            f"data.protocol={claim}: labelled and unlabelled part together are {len(ids)} images with SHA-256 {sha256}, "
            f"the published pool, {pool.description}, has {published}; set data.pool={pool.description} and "
            "data.unlabelled=rest, complete the data set, or set data.protocol to '' to claim nothing"
        )
