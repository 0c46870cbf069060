"""Downloads objects by boto3: boto3_get.py ENDPOINT BUCKET PREFIX OUT KEY..."""

import sys

import boto3
from boto3.s3.transfer import TransferConfig
from botocore import UNSIGNED
from botocore.config import Config


def main():
    endpoint, bucket, prefix, out, *keys = sys.argv[1:]
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(signature_version=UNSIGNED, max_pool_connections=16))
    config = TransferConfig(max_concurrency=8, multipart_chunksize=16 << 20)
    for key in keys:
        client.download_file(bucket, f"{prefix}/{key}", f"{out}/{key}", Config=config)


main()
