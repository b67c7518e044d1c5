from .cloud import cloud_app as cloud_app, serving_cloud as serving_cloud
