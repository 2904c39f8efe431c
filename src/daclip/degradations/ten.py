"""The ten by their words."""

from daclip.degradations.blur import motion_blurry
from daclip.degradations.common import Degrade
from daclip.degradations.drops import raindrop
from daclip.degradations.haze import hazy
from daclip.degradations.holes import uncompleted
from daclip.degradations.jpeg import jpeg_compressed
from daclip.degradations.sensor import low_light, noisy
from daclip.degradations.shadow import shadowed
from daclip.degradations.weather import rainy, snowy

DEGRADE: dict[str, Degrade] = {
    "motion-blurry": motion_blurry,
    "hazy": hazy,
    "jpeg-compressed": jpeg_compressed,
    "low-light": low_light,
    "noisy": noisy,
    "raindrop": raindrop,
    "rainy": rainy,
    "shadowed": shadowed,
    "snowy": snowy,
    "uncompleted": uncompleted,
}
