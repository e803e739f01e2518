import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.spec.MGF1ParameterSpec;
import java.util.Arrays;
import java.util.Base64;
import java.util.HexFormat;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.crypto.Cipher;
import javax.crypto.spec.OAEPParameterSpec;
import javax.crypto.spec.PSource;
import javax.crypto.spec.SecretKeySpec;

/** Sets and views a PIN the way the vendor's documentation describes a device, with nothing but the JDK. */
public final class CardPin {
    private final HttpClient http = HttpClient.newHttpClient();
    private final String edge;
    private final String token;
    private final KeyPair device;
    private final boolean defaultOaep;

    private CardPin(String edge, String token, int bits, boolean defaultOaep) throws Exception {
        this.edge = edge;
        this.token = token;
        this.defaultOaep = defaultOaep;
        KeyPairGenerator generator = KeyPairGenerator.getInstance("RSA");
        generator.initialize(bits);
        this.device = generator.generateKeyPair();
    }

    public static void main(String[] args) throws Exception {
        if (args.length == 6 && args[4].equals("zone-key")) {
            CardPin client = new CardPin(args[0], args[1], 2048, false);
            byte[] key = expanded(HexFormat.of().parseHex(args[5]));
            client.setByZone(args[2], args[3], key);
            if (!client.getByZone(args[2], key).equals(args[3])) {
                System.err.println("the PIN got is not the PIN set");
                System.exit(1);
            }
            System.out.println("set and got under a zone key");
            return;
        }
        boolean defaultOaep = args.length == 6 && args[5].equals("default-oaep");
        if (args.length != 5 && !defaultOaep) {
            System.err.println("usage: java CardPin.java EDGE_URL TOKEN PLASTIC_ID PIN KEY_BITS [default-oaep]");
            System.err.println("       java CardPin.java EDGE_URL TOKEN PLASTIC_ID PIN zone-key KEY_IN_HEX");
            System.exit(2);
        }
        CardPin client = new CardPin(args[0], args[1], Integer.parseInt(args[4]), defaultOaep);
        client.set(args[2], args[3]);
        String seen = client.view(args[2]);
        if (!seen.equals(args[3])) {
            System.err.println("the PIN viewed is not the PIN set");
            System.exit(1);
        }
        System.out.println("set and viewed with RSA-" + args[4]);
    }

    private void set(String plasticId, String pin) throws Exception {
        String control = open(plasticId, "SET_PIN");
        String answer = post(200, "/pin/v3/set/tzpk",
                "{\"controlId\":\"" + control + "\",\"publicKey\":\"" + publicKey() + "\"}");
        byte[] block = tripleDes(Cipher.ENCRYPT_MODE, openTzpk(member(answer, "tzpk")), formatOne(pin));
        post(200, "/pin/v3/set", "{\"controlId\":\"" + control + "\",\"pinBlock\":\"" + base64(block) + "\"}");
    }

    private String view(String plasticId) throws Exception {
        String control = open(plasticId, "VIEW_PIN");
        String answer = post(200, "/pin/v3/view",
                "{\"controlId\":\"" + control + "\",\"publicKey\":\"" + publicKey() + "\"}");
        byte[] block = Base64.getDecoder().decode(member(answer, "pinBlock"));
        return pinOf(tripleDes(Cipher.DECRYPT_MODE, openTzpk(member(answer, "tzpk")), block));
    }

    /** Sets a PIN under the zone key of index 0, as a client with a pre-shared key. */
    private void setByZone(String plasticId, String pin, byte[] key) throws Exception {
        String block = HexFormat.of().formatHex(tripleDes(Cipher.ENCRYPT_MODE, key, formatOne(pin)));
        post(200, "/pin/v2/" + plasticId, "{\"zpkIndex\":\"0\",\"pinBlock\":\"" + block + "\"}");
    }

    private String getByZone(String plasticId, byte[] key) throws Exception {
        String path = "/pin/v2/" + plasticId + "?zpkIndex=0&auditUser=java";
        HttpRequest request = HttpRequest.newBuilder(URI.create(edge + path))
                .header("Authorization", "Bearer " + token)
                .build();
        byte[] block = HexFormat.of().parseHex(member(send(200, request), "pinBlock"));
        return pinOf(tripleDes(Cipher.DECRYPT_MODE, key, block));
    }

    private String open(String plasticId, String scope) throws Exception {
        return member(post(201, "/pin/pincontrol/v2/plastic/" + plasticId, "{\"scope\":\"" + scope + "\"}"), "id");
    }

    /** K1 and K2 arrive as 16 bytes; DESede wants 24: K1, K2, K1. */
    private byte[] openTzpk(String encrypted) throws Exception {
        Cipher rsa;
        if (defaultOaep) {
            // Without parameters, the JDK uses SHA-1 in MGF1.
            rsa = Cipher.getInstance("RSA/ECB/OAEPWithSHA-256AndMGF1Padding");
            rsa.init(Cipher.DECRYPT_MODE, device.getPrivate());
        } else {
            rsa = Cipher.getInstance("RSA/ECB/OAEPPadding");
            rsa.init(Cipher.DECRYPT_MODE, device.getPrivate(),
                    new OAEPParameterSpec("SHA-256", "MGF1", MGF1ParameterSpec.SHA256, PSource.PSpecified.DEFAULT));
        }
        byte[] tzpk = rsa.doFinal(Base64.getDecoder().decode(encrypted));
        if (tzpk.length != 16) {
            throw new IllegalStateException("the tzpk has " + tzpk.length + " bytes");
        }
        return expanded(tzpk);
    }

    private static byte[] expanded(byte[] key) {
        byte[] expanded = Arrays.copyOf(key, 24);
        System.arraycopy(key, 0, expanded, 16, 8);
        return expanded;
    }

    private static byte[] tripleDes(int mode, byte[] key, byte[] block) throws Exception {
        Cipher cipher = Cipher.getInstance("DESede/ECB/NoPadding");
        cipher.init(mode, new SecretKeySpec(key, "DESede"));
        return cipher.doFinal(block);
    }

    /** 1, the length, the digits, A to the end. */
    private static byte[] formatOne(String pin) {
        StringBuilder nibbles = new StringBuilder("1").append(Integer.toHexString(pin.length())).append(pin);
        while (nibbles.length() < 16) {
            nibbles.append('a');
        }
        byte[] block = new byte[8];
        for (int i = 0; i < 8; i++) {
            block[i] = (byte) Integer.parseInt(nibbles.substring(2 * i, 2 * i + 2), 16);
        }
        return block;
    }

    private static String pinOf(byte[] block) {
        StringBuilder nibbles = new StringBuilder();
        for (byte b : block) {
            nibbles.append(String.format("%02x", b));
        }
        int length = Character.digit(nibbles.charAt(1), 16);
        if (nibbles.charAt(0) != '1' || length < 4 || length > 12) {
            throw new IllegalStateException("not a format 1 block");
        }
        return nibbles.substring(2, 2 + length);
    }

    private String publicKey() {
        return base64(device.getPublic().getEncoded());
    }

    private static String base64(byte[] bytes) {
        return Base64.getEncoder().encodeToString(bytes);
    }

    private String post(int expected, String path, String body) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(edge + path + "?auditUser=java"))
                .header("Authorization", "Bearer " + token)
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(body, StandardCharsets.UTF_8))
                .build();
        return send(expected, request);
    }

    private String send(int expected, HttpRequest request) throws Exception {
        HttpResponse<String> answer = http.send(request, HttpResponse.BodyHandlers.ofString());
        if (answer.statusCode() != expected) {
            throw new IllegalStateException(request.uri() + ": " + answer.statusCode() + " " + answer.body());
        }
        return answer.body();
    }

    private static String member(String json, String name) {
        Matcher matcher = Pattern.compile("\"" + name + "\"\\s*:\\s*\"([^\"]*)\"").matcher(json);
        if (!matcher.find()) {
            throw new IllegalStateException("no " + name + " in the answer");
        }
        return matcher.group(1);
    }
}
