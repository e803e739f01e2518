"""Sets and views a PIN through edge, engine and SoftHSM in a container, which is reset after each test.

The device and its back-end are those of clients/python: put your client in their place.
"""

import urllib.error

import pytest
from card_pin import BackEnd, Device
from pinseal_testcontainers import PinsealContainer, PinsealError

PLASTIC_ID, ACCOUNT_NUMBER = "1000200030", "5413330089020011"


@pytest.fixture(scope="session")
def pinseal():
    with PinsealContainer() as container:
        yield container


@pytest.fixture(autouse=True)
def reset(pinseal):
    yield
    pinseal.reset()


@pytest.fixture
def back_end(pinseal):
    pinseal.register_card(PLASTIC_ID, ACCOUNT_NUMBER)
    return BackEnd(pinseal.url, pinseal.bearer_token)


def set_pin(back_end, device, pin):
    control = back_end.open_control(PLASTIC_ID, "SET_PIN")
    issued = back_end.post("/pin/v3/set/tzpk", {"controlId": control, "publicKey": device.public_key()})
    back_end.post("/pin/v3/set", {"controlId": control, "pinBlock": device.encrypt_pin(issued["tzpk"], bytearray(pin))})


def view_pin(back_end, device):
    control = back_end.open_control(PLASTIC_ID, "VIEW_PIN")
    shown = back_end.post("/pin/v3/view", {"controlId": control, "publicKey": device.public_key()})
    return device.decrypt_pin(shown["tzpk"], shown["pinBlock"])


def test_a_cardholder_sets_and_views_a_pin(back_end):
    device = Device()
    set_pin(back_end, device, b"2580")
    assert view_pin(back_end, device) == b"2580"


def test_a_reset_leaves_no_pin(pinseal, back_end):
    device = Device()
    set_pin(back_end, device, b"2580")
    pinseal.reset()
    with pytest.raises(urllib.error.HTTPError) as refused:
        view_pin(back_end, device)
    assert refused.value.code == 404


def test_a_malformed_card_is_refused(pinseal):
    with pytest.raises(PinsealError, match="line 1 is not a card"):
        pinseal.register_card(PLASTIC_ID, "5413")
