"""Sets and views a PIN through the engine's gRPC, by reflection alone: no generated code, no .proto file.

usage: engine_by_reflection.py ENGINE_ADDRESS PLASTIC_ID PIN
"""

import sys

import grpc
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


class Engine:
    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        database = ProtoReflectionDescriptorDatabase(self.channel)
        self.services = set(database.get_services())
        self.pool = DescriptorPool(database)

    def call(self, service, method, **fields):
        described = self.pool.FindServiceByName(f"pinseal.v1.{service}").methods_by_name[method]
        request = GetMessageClass(described.input_type)(tenant="python", audit_user="python", **fields)
        unary = self.channel.unary_unary(
            f"/pinseal.v1.{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(described.output_type).FromString,
        )
        return unary(request, timeout=10)


def triple_des(tzpk):
    return Cipher(TripleDES(tzpk + tzpk[:8]), modes.ECB())


def main(address, plastic_id, pin):
    engine = Engine(address)
    wanted = {"pinseal.v1.ControlService", "pinseal.v1.PinService", "pinseal.v1.CardService", "grpc.health.v1.Health"}
    if not wanted <= engine.services:
        return f"reflection shows only {sorted(engine.services)}"

    device = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = device.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    engine.call("CardService", "RegisterCard", plastic_id=plastic_id, account_number="5413330089020011")

    control = engine.call("ControlService", "OpenControl", plastic_id=plastic_id, scope=1).control_id
    issued = engine.call("PinService", "IssueTzpk", control_id=control, device_public_key=public)
    block = bytes.fromhex(f"1{len(pin):x}{pin}".ljust(16, "c"))
    encryptor = triple_des(device.decrypt(issued.encrypted_tzpk, OAEP)).encryptor()
    engine.call("PinService", "SetPin", control_id=control, pin_block=encryptor.update(block))

    control = engine.call("ControlService", "OpenControl", plastic_id=plastic_id, scope=2).control_id
    shown = engine.call("PinService", "ViewPin", control_id=control, device_public_key=public)
    decryptor = triple_des(device.decrypt(shown.encrypted_tzpk, OAEP)).decryptor()
    nibbles = decryptor.update(shown.pin_block).hex()
    if nibbles[0] != "1" or nibbles[2 : 2 + int(nibbles[1], 16)] != pin:
        return "the PIN viewed is not the PIN set"
    try:
        engine.call("PinService", "ViewPin", control_id=control, device_public_key=public)
        return "a control to view was used twice"
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            return f"a spent control answers {error.code()}"
    print("set and viewed by reflection")
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
