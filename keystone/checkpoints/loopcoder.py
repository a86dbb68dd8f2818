"""The LoopCoder-V2 layout: already this architecture, so its `config.json` goes into the base as it came.

The modeling code's own configuration class reads the released file, and refuses one that leaves a loop parameter out.
Only two things are added here: a field nobody knows is not let pass in silence, and the gate's tensors get one name
whichever of the three spellings a file uses. Our own exports (`model_type` `keystone_plt`) are read the same way.
"""

from collections.abc import Collection
from dataclasses import fields as dataclass_fields

from keystone.checkpoints.families import SIZES
from keystone.checkpoints.fields import number, overlooked, whole
from keystone.checkpoints.sources import Fields, Note
from keystone.errors import ConfigurationError
from keystone.model import KeystoneConfig
from keystone.model.configuration import VENDOR_MODEL_TYPE

MODEL_TYPES = (VENDOR_MODEL_TYPE, KeystoneConfig.model_type)
LAYOUTS = {VENDOR_MODEL_TYPE: "loopcoder-v2", KeystoneConfig.model_type: "keystone"}

_SPELLINGS = frozenset({"rope_theta", "rope_scaling", "auto_map", "id2label", "label2id"})


def read_loopcoder(fields: Fields, *, ignored: Collection[str] = ()) -> tuple[KeystoneConfig, tuple[Note, ...]]:
    """The configuration of a checkpoint in the LoopCoder-V2 layout, or in our own.

    Args:
        fields: the file.
        ignored: fields an owner declares harmless.

    Raises:
        ConfigurationError: a missing loop parameter, a value that cannot be honoured, or an unknown field that is on.
    """
    known = {field.name for field in dataclass_fields(KeystoneConfig)} | _SPELLINGS
    notes = tuple(overlooked(fields, known=known, ignored=ignored))
    for name in SIZES:
        whole(fields, name)
    number(fields, "rms_norm_eps")
    rope = fields.get("rope_parameters")
    if "rope_theta" not in fields and not (isinstance(rope, dict) and "rope_theta" in rope):
        raise ConfigurationError("config.json names no rope_theta, neither at the top nor in rope_parameters")
    try:
        config = KeystoneConfig.from_dict(fields)
    except ConfigurationError:
        raise
    except Exception as error:  # strict dataclasses raise classes of their own
        raise ConfigurationError(f"config.json cannot be honoured: {error}") from error
    if "auto_map" in fields:
        notes += (Note("field", "auto_map", "code that came with the checkpoint is never run; ours computes"),)
    return config, notes
