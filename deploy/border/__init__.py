"""The only entry point for data from a machine or a foreign file: validate it, return typed, bounded values.

Invalid data raises BadAnswer, one sentence that names the source and the field. `what` names the source, such as
"box: status.json of run r1"; the functions for documents add the field.
"""

from __future__ import annotations

from deploy.border.documents import DOCUMENT_BYTES as DOCUMENT_BYTES
from deploy.border.documents import DOCUMENT_READ_BYTES as DOCUMENT_READ_BYTES
from deploy.border.documents import EVENT_BYTES as EVENT_BYTES
from deploy.border.documents import FILE_BYTES as FILE_BYTES
from deploy.border.documents import GIB as GIB
from deploy.border.documents import RESERVE_BYTES as RESERVE_BYTES
from deploy.border.documents import RESULTS_MOST as RESULTS_MOST
from deploy.border.documents import Gpu as Gpu
from deploy.border.documents import Newest as Newest
from deploy.border.documents import RunStatus as RunStatus
from deploy.border.documents import checkpoint_note as checkpoint_note
from deploy.border.documents import document as document
from deploy.border.documents import event as event
from deploy.border.documents import frame as frame
from deploy.border.documents import progress as progress
from deploy.border.documents import read_document as read_document
from deploy.border.documents import read_events as read_events
from deploy.border.documents import restorable as restorable
from deploy.border.documents import standing as standing
from deploy.border.documents import status as status
from deploy.border.entries import Unreadable as Unreadable
from deploy.border.entries import entries as entries
from deploy.border.entries import fitting as fitting
from deploy.border.entries import identifier as identifier
from deploy.border.history import History as History
from deploy.border.history import Setting as Setting
from deploy.border.history import loss_curve as loss_curve
from deploy.border.history import read_history as read_history
from deploy.border.history import read_settings as read_settings
from deploy.border.pages import REPORT_BEGINS as REPORT_BEGINS
from deploy.border.pages import is_report as is_report
from deploy.border.pages import verdict as verdict
from deploy.border.places import CURVES as CURVES
from deploy.border.places import PICTURE as PICTURE
from deploy.border.places import RESULT as RESULT
from deploy.border.places import Name as Name
from deploy.border.places import Place as Place
from deploy.border.places import chosen as chosen
from deploy.border.places import impossible as impossible
from deploy.border.places import place as place
from deploy.border.values import LISTED_MOST as LISTED_MOST
from deploy.border.values import REASON_CHARACTERS as REASON_CHARACTERS
from deploy.border.values import address as address
from deploy.border.values import cut as cut
from deploy.border.values import dollars as dollars
from deploy.border.values import hashes as hashes
from deploy.border.values import heard as heard
from deploy.border.values import interface as interface
from deploy.border.values import mapping as mapping
from deploy.border.values import names as names
from deploy.border.values import number as number
from deploy.border.values import path_text as path_text
from deploy.border.values import sha256 as sha256
from deploy.border.values import size as size
from deploy.border.values import snapshot_state as snapshot_state
from deploy.border.values import staged_images as staged_images
from deploy.border.values import strings as strings
from deploy.border.values import text as text
from deploy.border.values import unix_time as unix_time
from deploy.border.values import user_name as user_name
from deploy.border.values import whole as whole
from deploy.pod.base.checkpoints import CHECKPOINT as CHECKPOINT
