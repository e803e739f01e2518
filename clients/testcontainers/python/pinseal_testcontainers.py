"""Pinseal in a container, for the tests of a client of the Card PIN API: edge, engine and a SoftHSM token.

The container serves HTTP without TLS, with keys that it makes at its start. Use test cards alone.

    with PinsealContainer() as pinseal:
        pinseal.register_card("1000200030", "5413330089020011")
        client_under_test(pinseal.url, pinseal.bearer_token)
        pinseal.reset()
"""

import os
import time

from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

EDGE_PORT = 8080
"""The port of the edge in the container, for clients in other containers of its network."""
_START_SECONDS_MAX = 120
_POLL_SECONDS = 0.05
_EXIT_POLL_SECONDS = 0.01


class PinsealError(Exception):
    """A command in the container failed. The container's log says more."""


class PinsealContainer(DockerContainer):
    """A container of the image `image`, or the one that the variable PINSEAL_IMAGE names, or `pinseal-softhsm`.

    `bearer_token` is the credential of the client, 64 characters. It and the URL stay after a reset.
    """

    bearer_token: str

    def __init__(self, image=None, **settings):
        image = image or os.environ.get("PINSEAL_IMAGE", "pinseal-softhsm")
        super().__init__(image, command="trial", ports=[EDGE_PORT], **settings)
        # In memory, because a store on disk waits for its syncs.
        self.with_tmpfs_mount("/trial")
        serves = LogMessageWaitStrategy("pinseal trial serves")
        self.waiting_for(serves.with_startup_timeout(_START_SECONDS_MAX).with_poll_interval(_POLL_SECONDS))

    def start(self):
        super().start()
        self.bearer_token = self._run("cat", "/trial/pinseal/bearer-token")
        return self

    @property
    def url(self):
        """The base URL of the edge for a client outside Docker, such as http://localhost:32768."""
        return f"http://{self.get_container_host_ip()}:{self.get_exposed_port(EDGE_PORT)}"

    def register_card(self, plastic_id, account_number=None):
        """Registers a card: a plasticId of 1 to 19 digits, and an account number of 12 to 19 digits if it has one.

        Raises PinsealError if a number is malformed.
        """
        self._run("start", "register", f"{plastic_id},{account_number}" if account_number else plastic_id)

    def reset(self):
        """Starts the engine again with an empty store: no card, PIN, control, counter and audit entry is left.

        A request that the edge processes during the reset may fail with 503. Raises PinsealError if the engine does not start.
        """
        self._run("start", "reset")

    def _run(self, *command):
        docker = self.get_docker_client().client.api
        running = docker.exec_create(self.get_container_id(), list(command))["Id"]
        output = docker.exec_start(running).decode()
        # The exit code may be known a moment after the end of the output.
        while (code := docker.exec_inspect(running)["ExitCode"]) is None:
            time.sleep(_EXIT_POLL_SECONDS)
        if code != 0:
            raise PinsealError(f"{' '.join(command)!r} ended with code {code}: {output.strip()}")
        return output
