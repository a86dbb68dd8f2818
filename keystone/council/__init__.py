"""The council: several models propose, tests decide, and what happened is written down whatever it was."""

from keystone.council.deliberating import Plan, deliberate
from keystone.council.keeping import Kept, keep
from keystone.council.members import EndpointMember, LocalMember, Member, Reply, seat_members
from keystone.council.outcome import Outcome, program_text
from keystone.council.retrieval import FoundRecord, search_records
from keystone.council.tasks import CouncilTask, council_task

__all__ = [
    "CouncilTask",
    "EndpointMember",
    "FoundRecord",
    "Kept",
    "LocalMember",
    "Member",
    "Outcome",
    "Plan",
    "Reply",
    "council_task",
    "deliberate",
    "keep",
    "program_text",
    "search_records",
    "seat_members",
]
