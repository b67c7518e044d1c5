from .loop import Loop as Loop
from .monitor import Monitor as Monitor
from .plan import Plan as Plan
from .propose import ByRecord as ByRecord
from .reporting import report as report
from .store import Row as Row, Store as Store
