from .advice import Advice as Advice, Situation as Situation, advise as advise
from .listing import System as System, systems as systems
