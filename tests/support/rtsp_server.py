"""GStreamer's RTSP server with a test pattern or a file, for the system's own Python: prints its
port, then serves until it is killed.

Arguments: port (0 = any), user, password, an MP4 file ("" = the pattern).
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 (the versions come first)

PIPELINE = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=160,height=120,framerate=25/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0 "
    "config-interval=1 )"
)
FILE = '( filesrc location="{}" ! qtdemux ! h264parse ! rtph264pay name=pay0 config-interval=1 )'


def main(port: str, user: str, password: str, file: str) -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer(service=port, address="127.0.0.1")
    factory = GstRtspServer.RTSPMediaFactory(
        launch=FILE.format(file) if file else PIPELINE, shared=True
    )
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", user)
    rights = "media.factory.access=(boolean)true, media.factory.construct=(boolean)true"
    factory.add_role_from_structure(Gst.Structure.new_from_string(f"{user}, {rights}"))
    auth = GstRtspServer.RTSPAuth()
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    server.get_mount_points().add_factory("/cam", factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


main(*sys.argv[1:])
