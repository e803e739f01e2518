import java.nio.charset.StandardCharsets;
import java.security.KeyPair;
import java.util.Arrays;
import java.util.Base64;
import javax.crypto.Cipher;

/** What clients/java/CardPin.java does not offer: a zone key, and the JDK's default parameters of OAEP. Compiled with it. */
public final class TestClient {
    private static final String USAGE = "usage: java TestClient EDGE_URL TOKEN PLASTIC_ID PIN zone-key KEY_IN_HEX\n"
            + "       java TestClient EDGE_URL TOKEN PLASTIC_ID PIN default-oaep";

    private final CardPin.BackEnd backEnd;
    private final String plasticId;
    private final byte[] pin;

    private TestClient(CardPin.BackEnd backEnd, String plasticId, byte[] pin) {
        this.backEnd = backEnd;
        this.plasticId = plasticId;
        this.pin = pin;
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments.length < 5) {
            System.err.println(USAGE);
            System.exit(2);
        }
        byte[] pin = arguments[3].getBytes(StandardCharsets.US_ASCII);
        TestClient client = new TestClient(new CardPin.BackEnd(arguments[0], arguments[1]), arguments[2], pin);
        if (arguments[4].equals("zone-key") && arguments.length == 6) {
            client.setAndGetByZone(CardPin.bytes(arguments[5]));
            System.out.println("set and got under a zone key");
        } else if (arguments[4].equals("default-oaep") && arguments.length == 5) {
            client.setAndViewWithDefaultOaep();
            System.out.println("set and viewed with the default parameters of OAEP");
        } else {
            System.err.println(USAGE);
            System.exit(2);
        }
    }

    /** As a client with a pre-shared key, the zone key of index 0. */
    private void setAndGetByZone(byte[] key) throws Exception {
        byte[] clear = CardPin.formatOne(pin, CardPin.random());
        String block = CardPin.hex(CardPin.tripleDes(Cipher.ENCRYPT_MODE, key, clear));
        backEnd.call("POST", "/pin/v2/" + plasticId, CardPin.BackEnd.json("zpkIndex", "0", "pinBlock", block));
        String got = backEnd.call("GET", "/pin/v2/" + plasticId + "?zpkIndex=0", null);
        compare(key, CardPin.bytes(CardPin.BackEnd.member(got, "pinBlock")));
    }

    private void setAndViewWithDefaultOaep() throws Exception {
        KeyPair keys = CardPin.generate(2048);
        String publicKey = new CardPin(keys).publicKey();
        String control = backEnd.openControl(plasticId, "SET_PIN");
        String asked = CardPin.BackEnd.json("controlId", control, "publicKey", publicKey);
        byte[] key = decrypt(keys, backEnd.call("POST", "/pin/v3/set/tzpk", asked));
        byte[] block = CardPin.tripleDes(Cipher.ENCRYPT_MODE, key, CardPin.formatOne(pin, CardPin.random()));
        String encoded = Base64.getEncoder().encodeToString(block);
        backEnd.call("POST", "/pin/v3/set", CardPin.BackEnd.json("controlId", control, "pinBlock", encoded));

        control = backEnd.openControl(plasticId, "VIEW_PIN");
        String shown = backEnd.call("POST", "/pin/v3/view", CardPin.BackEnd.json("controlId", control, "publicKey", publicKey));
        compare(decrypt(keys, shown), Base64.getDecoder().decode(CardPin.BackEnd.member(shown, "pinBlock")));
    }

    /** Without parameters, the JDK uses SHA-1 in MGF1. */
    private static byte[] decrypt(KeyPair keys, String answer) throws Exception {
        Cipher rsa = Cipher.getInstance("RSA/ECB/OAEPWithSHA-256AndMGF1Padding");
        rsa.init(Cipher.DECRYPT_MODE, keys.getPrivate());
        return rsa.doFinal(Base64.getDecoder().decode(CardPin.BackEnd.member(answer, "tzpk")));
    }

    private void compare(byte[] key, byte[] block) throws Exception {
        if (!Arrays.equals(CardPin.digitsOf(CardPin.tripleDes(Cipher.DECRYPT_MODE, key, block)), pin)) {
            throw new IllegalStateException("the PIN got is not the PIN set");
        }
    }
}
