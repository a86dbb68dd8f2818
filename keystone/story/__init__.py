"""The ledger as a story: what happened, in sentences that a person reads."""

from keystone.story.kinds import STORY_KINDS
from keystone.story.reading import StoryQuery, read_story
from keystone.story.telling import Sentence, Teller

__all__ = ["STORY_KINDS", "Sentence", "StoryQuery", "Teller", "read_story"]
