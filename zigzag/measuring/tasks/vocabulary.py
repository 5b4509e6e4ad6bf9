"""Words that tasks hide: short, common, and none of the filler's."""

NOUNS = (
    "apple arrow basket bell bottle bridge button candle carpet castle chair circle clock cloud coin copper crown desk "
    "dragon drum eagle engine feather flag flower forest glass hammer honey horse island jacket kettle key ladder lamp "
    "lemon lion mirror moon needle ocean orange paper pearl pencil piano pillow plate pocket rabbit ring river rocket "
    "rope salt shell ship silver snake spoon star stone sugar table tiger tower train umbrella village wagon whale "
    "wheel window winter wolf"
).split()
