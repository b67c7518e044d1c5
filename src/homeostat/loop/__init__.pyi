from .alerts import Alert as Alert, Alerts as Alerts, Hook as Hook, LogAlert as LogAlert, Webhook as Webhook
from .asking import OnDemand as OnDemand
from .checklist import Audit as Audit, Check as Check, audit as audit
from .deployment import Deployment as Deployment, deploy as deploy, read_deployment as read_deployment
from .drafting import Draft as Draft, draft as draft
from .explain import Told as Told, why as why
from .loop import Loop as Loop
from .monitor import Monitor as Monitor
from .network import Network as Network
from .operate import Status as Status, history as history, rollback as rollback, status as status
from .plan import Plan as Plan
from .practices import Limits as Limits
from .propose import Bandit as Bandit, ByRecord as ByRecord
from .reporting.page import report as report
from .samples import Samples as Samples
from .sensing import (
    Belief as Belief,
    Process as Process,
    Sensed as Sensed,
    Sensing as Sensing,
    SensingLoop as SensingLoop,
)
from .serving import Served as Served, serve as serve, write_report as write_report
from .sources import open_data as open_data, open_layout as open_layout, open_model as open_model
from .store import Row as Row, Store as Store
