"""The words of the shapes world: those that captions use, and those that users use instead.

Belongs here: vocabulary only, one table a topic. Does not belong here: sentences (captions.py), queries and
their reading (queries.py). No word of a user's table for colour, shape or motion occurs in a caption: that
gap is what a prompt optimizer learns to bridge.
"""

CAPTION_MOTION = {
    "right": ("moves to the right", "glides rightward across the frame", "slides toward the right edge"),
    "left": ("moves to the left", "glides leftward across the frame", "slides toward the left edge"),
    "up": ("moves up", "rises upward through the frame", "climbs toward the top"),
    "down": ("moves down", "sinks downward through the frame", "descends toward the bottom"),
    "still": ("stays still", "remains motionless in one place", "rests without any movement"),
    "grow": ("grows bigger", "expands to a big size", "keeps growing in place"),
}
CAPTION_MOTION_AGAIN = {
    "right": "The motion goes rightward.",
    "left": "The motion goes leftward.",
    "up": "The motion goes upward.",
    "down": "The motion goes downward.",
    "still": "There is no motion at all.",
    "grow": "Its size is growing with every frame.",
}
CAPTION_FORM = {
    "circle": ("a round filled outline", "a smooth circular edge"),
    "square": ("four equal straight sides", "four right angled corners"),
    "triangle": ("three sides and a pointed tip", "a flat base and three corners"),
    "ring": ("a round band with a hollow middle", "an open hole in its centre"),
    "cross": ("two crossing bars", "four equal arms"),
}
CAPTION_BACKGROUND = {
    "dark": ("a dark background", "a plain dark backdrop"),
    "light": ("a light background", "a plain light backdrop"),
    "striped": ("a striped background", "a backdrop with vertical stripes"),
}

# What captions say about the footage itself: of clean footage, and of each defect.
GOOD_STYLE = {
    "blur": ("sharp focus", "crisp sharp edges"),
    "shake": ("a steady camera", "a locked steady frame"),
    "flicker": ("stable light", "constant stable lighting"),
    "washed": ("vivid colours", "vivid saturated tones"),
}
BAD_STYLE = {
    "blur": ("dreamy soft focus", "a hazy blurred look"),
    "shake": ("a handheld feel", "a wobbly handheld camera"),
    "flicker": ("vintage flicker", "old film flicker"),
    "washed": ("a pale faded look", "faded pastel tones"),
}
STYLE_LEAD = ("Filmed with", "Shot with", "The footage has", "The look is defined by")

ALONE = ("It is the only object in the scene.", "Nothing else appears in the frame.")
FILLER = ("It is a short simple clip.", "The scene is minimal and easy to read.")

USER_COLOR = {
    "red": ("crimson", "scarlet", "ruby"),
    "yellow": ("golden", "lemon", "mustard"),
    "green": ("emerald", "lime", "mint"),
    "cyan": ("teal", "aqua", "turquoise"),
    "blue": ("navy", "azure", "sapphire"),
    "purple": ("violet", "lavender", "plum"),
}
USER_SHAPE = {
    "circle": ("disc", "ball", "orb"),
    "square": ("box", "block", "cube"),
    "triangle": ("pyramid", "wedge"),
    "ring": ("donut", "hoop"),
    "cross": ("plus sign", "crucifix"),
}
USER_MOTION = {
    "right": ("heads east", "zips eastbound"),
    "left": ("heads west", "zips westbound"),
    "up": ("takes off", "soars skyward"),
    "down": ("drops", "tumbles groundward"),
    "still": ("just chilling", "sits parked", "stays frozen"),
    "grow": ("inflates", "balloons", "swells"),
}
USER_SIZE = {"small": ("tiny", "mini", "little"), "large": ("huge", "giant", "massive")}
USER_BACKGROUND = {
    "dark": ("at night", "in the black"),
    "light": ("on white", "in daylight"),
    "striped": ("by a barcode wall", "near zebra lines"),
}
