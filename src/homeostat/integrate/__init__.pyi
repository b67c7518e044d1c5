from .exposition import endpoint as endpoint, prometheus as prometheus
from .mlflow_runs import MLflow as MLflow
from .records import export as export
from .tracker import Tracker as Tracker
from .trackio_runs import Trackio as Trackio
from .trainer import ProbeCallback as ProbeCallback
