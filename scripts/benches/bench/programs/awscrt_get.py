"""Downloads objects by AWS's common runtime: awscrt_get.py HOST:PORT BUCKET PREFIX OUT KEY..."""

import sys

from awscrt.http import HttpHeaders, HttpRequest
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup
from awscrt.s3 import S3Client, S3RequestTlsMode, S3RequestType


def main():
    endpoint, bucket, prefix, out, *keys = sys.argv[1:]
    group = EventLoopGroup(2)
    bootstrap = ClientBootstrap(group, DefaultHostResolver(group))
    client = S3Client(
        bootstrap=bootstrap,
        region="us-east-1",
        tls_mode=S3RequestTlsMode.DISABLED,
        part_size=16 << 20,
        throughput_target_gbps=20,
    )
    waiting = []
    for key in keys:
        headers = HttpHeaders([("host", endpoint)])
        request = HttpRequest("GET", f"/{bucket}/{prefix}/{key}", headers)
        waiting.append(client.make_request(type=S3RequestType.GET_OBJECT, request=request, recv_filepath=f"{out}/{key}"))
    for one in waiting:
        one.finished_future.result()


main()
