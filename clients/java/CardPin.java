import java.io.IOException;
import java.io.InputStream;
import java.math.BigInteger;
import java.net.HttpURLConnection;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.MessageDigest;
import java.security.SecureRandom;
import java.security.interfaces.RSAPrivateCrtKey;
import java.security.spec.MGF1ParameterSpec;
import java.security.spec.PKCS8EncodedKeySpec;
import java.security.spec.RSAPublicKeySpec;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Scanner;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.crypto.Cipher;
import javax.crypto.spec.OAEPParameterSpec;
import javax.crypto.spec.PSource;
import javax.crypto.spec.SecretKeySpec;

/**
 * The device's part of the Card PIN API, with nothing but the JDK (Java 8 or later), and a command that sets and views a PIN.
 *
 * <p>A device makes an RSA key pair. The issuer encrypts the tzpk, a double-length 3DES key, to the public key: RSA-OAEP with
 * SHA-256 for the hash and SHA-256 for MGF1 (RFC 8017). The device encrypts the PIN under the tzpk as an ISO 9564-1 format 1
 * block.
 */
public final class CardPin {
    /**
     * MGF1 has its own hash. The name of the transformation does not set it: the JDK and the Android key store use SHA-1 unless
     * these parameters name SHA-256.
     */
    private static final OAEPParameterSpec OAEP =
            new OAEPParameterSpec("SHA-256", "MGF1", MGF1ParameterSpec.SHA256, PSource.PSpecified.DEFAULT);

    private final KeyPair keys;

    /** Makes an RSA key pair of 2048 bits. */
    public CardPin() throws GeneralSecurityException {
        this(generate(2048));
    }

    /** Uses this RSA key pair, of 2048 to 4096 bits. */
    public CardPin(KeyPair keys) {
        this.keys = keys;
    }

    /** The member {@code publicKey}: base64 of the DER SubjectPublicKeyInfo. */
    public String publicKey() {
        return Base64.getEncoder().encodeToString(keys.getPublic().getEncoded());
    }

    /**
     * The member {@code pinBlock} for a tzpk and a PIN.
     *
     * @param tzpk the member {@code tzpk} of the answer
     * @param pin 4 to 12 ASCII digits; this method wipes them
     * @throws TzpkException if the private key does not decrypt the tzpk
     * @throws IllegalArgumentException if the PIN is malformed
     */
    public String encryptPin(String tzpk, byte[] pin) throws GeneralSecurityException {
        byte[] key = {};
        byte[] block = {};
        try {
            block = formatOne(pin, random());
            key = decryptTzpk(tzpk);
            return Base64.getEncoder().encodeToString(tripleDes(Cipher.ENCRYPT_MODE, key, block));
        } finally {
            wipe(pin);
            wipe(block);
            wipe(key);
        }
    }

    /**
     * The PIN of an answer to a view: ASCII digits, which the caller wipes after they were shown.
     *
     * @throws TzpkException if the private key does not decrypt the tzpk
     * @throws BlockException if the block holds no PIN
     */
    public byte[] decryptPin(String tzpk, String pinBlock) throws GeneralSecurityException {
        byte[] key = decryptTzpk(tzpk);
        byte[] block = {};
        try {
            block = tripleDes(Cipher.DECRYPT_MODE, key, Base64.getDecoder().decode(pinBlock));
            return digitsOf(block);
        } catch (IllegalArgumentException malformed) {
            throw new BlockException();
        } finally {
            wipe(block);
            wipe(key);
        }
    }

    /** The private key does not decrypt the tzpk to 16 bytes. */
    public static final class TzpkException extends GeneralSecurityException {
        TzpkException(Throwable cause) {
            super("this device's key does not decrypt the tzpk to 16 bytes: RSA-OAEP needs SHA-256 for the hash and for MGF1, and "
                    + "no label. If the edge makes tzpks with MGF1-SHA-1, remove oaep_mgf1 = \"sha-1\" from its client", cause);
        }
    }

    /** A decrypted block is not ISO 9564-1 format 1 with 4 to 12 digits. */
    public static final class BlockException extends GeneralSecurityException {
        BlockException() {
            super("the block holds no PIN in ISO 9564-1 format 1: start again with a new control");
        }
    }

    static KeyPair generate(int bits) throws GeneralSecurityException {
        KeyPairGenerator generator = KeyPairGenerator.getInstance("RSA");
        generator.initialize(bits);
        return generator.generateKeyPair();
    }

    /** K1 and K2, 16 bytes. */
    private byte[] decryptTzpk(String tzpk) throws TzpkException {
        byte[] key;
        try {
            Cipher rsa = Cipher.getInstance("RSA/ECB/OAEPPadding");
            rsa.init(Cipher.DECRYPT_MODE, keys.getPrivate(), OAEP);
            key = rsa.doFinal(Base64.getDecoder().decode(tzpk));
        } catch (GeneralSecurityException | IllegalArgumentException cause) {
            throw new TzpkException(cause);
        }
        if (key.length != 16) {
            wipe(key);
            throw new TzpkException(null);
        }
        return key;
    }

    /** The nibbles 1, length, digits; the rest of {@code filler} follows. */
    static byte[] formatOne(byte[] pin, byte[] filler) {
        byte[] block = Arrays.copyOf(filler, 8);
        if (pin.length < 4 || pin.length > 12) {
            throw new IllegalArgumentException("a PIN is 4 to 12 digits");
        }
        block[0] = (byte) (0x10 | pin.length);
        for (int i = 0; i < pin.length; i++) {
            int digit = pin[i] - '0';
            if (digit < 0 || digit > 9) {
                wipe(block);
                throw new IllegalArgumentException("a PIN is 4 to 12 digits");
            }
            int at = 1 + i / 2;
            block[at] = (byte) (i % 2 == 0 ? block[at] & 0x0F | digit << 4 : block[at] & 0xF0 | digit);
        }
        return block;
    }

    /** The ASCII digits in a clear format 1 block, whatever its filler. */
    static byte[] digitsOf(byte[] block) throws BlockException {
        int length = block.length == 8 && block[0] >> 4 == 1 ? block[0] & 0x0F : 0;
        if (length < 4 || length > 12) {
            throw new BlockException();
        }
        byte[] digits = new byte[length];
        for (int i = 0; i < length; i++) {
            int nibble = block[1 + i / 2] >> (i % 2 == 0 ? 4 : 0) & 0x0F;
            if (nibble > 9) {
                wipe(digits);
                throw new BlockException();
            }
            digits[i] = (byte) ('0' + nibble);
        }
        return digits;
    }

    /** 3DES-ECB without padding. DESede wants 24 bytes: K1, K2, K1. */
    static byte[] tripleDes(int mode, byte[] key, byte[] data) throws GeneralSecurityException {
        byte[] expanded = Arrays.copyOf(key, 24);
        System.arraycopy(key, 0, expanded, 16, 8);
        try {
            Cipher cipher = Cipher.getInstance("DESede/ECB/NoPadding");
            cipher.init(mode, new SecretKeySpec(expanded, "DESede"));
            return cipher.doFinal(data);
        } finally {
            wipe(expanded);
        }
    }

    static byte[] random() {
        byte[] filler = new byte[8];
        new SecureRandom().nextBytes(filler);
        return filler;
    }

    static void wipe(byte[] clear) {
        Arrays.fill(clear, (byte) 0);
    }

    /** The calls of the back-end, which authenticates the cardholder, opens controls and passes the device's values on. */
    static final class BackEnd {
        private final String edge;
        private final String token;

        BackEnd(String edge, String token) {
            this.edge = edge;
            this.token = token;
        }

        void setPin(CardPin device, String plasticId, byte[] pin) throws IOException, GeneralSecurityException {
            String control = openControl(plasticId, "SET_PIN");
            String issued = call("POST", "/pin/v3/set/tzpk", json("controlId", control, "publicKey", device.publicKey()));
            String block = device.encryptPin(member(issued, "tzpk"), pin);
            call("POST", "/pin/v3/set", json("controlId", control, "pinBlock", block));
        }

        byte[] viewPin(CardPin device, String plasticId) throws IOException, GeneralSecurityException {
            String control = openControl(plasticId, "VIEW_PIN");
            String shown = call("POST", "/pin/v3/view", json("controlId", control, "publicKey", device.publicKey()));
            return device.decryptPin(member(shown, "tzpk"), member(shown, "pinBlock"));
        }

        String openControl(String plasticId, String scope) throws IOException {
            return member(call("POST", "/pincontrol/v2/plastic/" + plasticId, json("scope", scope)), "id");
        }

        /** The body of a successful answer. A path without a question mark gets the query auditUser. */
        String call(String method, String path, String body) throws IOException {
            URL url = new URL(edge + path + (path.contains("?") ? "&" : "?") + "auditUser=CardPin.java");
            HttpURLConnection connection = (HttpURLConnection) url.openConnection();
            connection.setConnectTimeout(30_000);
            connection.setReadTimeout(30_000);
            connection.setRequestMethod(method);
            connection.setRequestProperty("Authorization", "Bearer " + token);
            if (body != null) {
                connection.setRequestProperty("Content-Type", "application/json");
                connection.setDoOutput(true);
                connection.getOutputStream().write(body.getBytes(StandardCharsets.UTF_8));
            }
            int status = connection.getResponseCode();
            try (InputStream stream = status < 400 ? connection.getInputStream() : connection.getErrorStream()) {
                String text = stream == null ? "" : new Scanner(stream, "UTF-8").useDelimiter("\\A").next();
                if (status >= 400) {
                    throw new IOException(path + ": " + status + " " + text);
                }
                return text;
            }
        }

        static String json(String... members) {
            StringBuilder text = new StringBuilder("{");
            for (int i = 0; i < members.length; i += 2) {
                text.append(i == 0 ? "" : ",").append('"' + members[i] + "\":\"" + members[i + 1] + '"');
            }
            return text.append('}').toString();
        }

        /** A member of a flat JSON object whose text has no escapes, such as those of the edge. */
        static String member(String json, String name) throws IOException {
            Matcher matcher = Pattern.compile("\"" + name + "\"\\s*:\\s*\"([^\"]*)\"").matcher(json);
            if (!matcher.find()) {
                throw new IOException("the answer has no " + name);
            }
            return matcher.group(1);
        }
    }

    /** The PIN that the command sets. The key boundary refuses PINs such as 1234. */
    private static final String COMMAND_PIN = "2580";

    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = new HashMap<>();
        for (int i = 0; i + 1 < arguments.length; i += 2) {
            options.put(arguments[i], arguments[i + 1]);
        }
        try {
            if (options.containsKey("--vectors")) {
                System.out.println(new Vectors(options.get("--vectors")).check() + " vectors: ok");
            } else if (options.containsKey("--edge") && options.containsKey("--token") && options.containsKey("--plastic-id")) {
                CardPin device = new CardPin(generate(Integer.parseInt(options.getOrDefault("--key-bits", "2048"))));
                setAndView(new BackEnd(options.get("--edge"), options.get("--token")), device, options.get("--plastic-id"));
                System.out.println("ok");
            } else {
                System.err.println("usage: java CardPin.java --edge URL --token TOKEN --plastic-id N [--key-bits BITS]");
                System.err.println("       java CardPin.java --vectors FILE");
                System.exit(2);
            }
        } catch (IOException | GeneralSecurityException | IllegalStateException error) {
            System.err.println(error);
            System.exit(1);
        }
    }

    static void setAndView(BackEnd backEnd, CardPin device, String plasticId) throws IOException, GeneralSecurityException {
        backEnd.setPin(device, plasticId, COMMAND_PIN.getBytes(StandardCharsets.US_ASCII));
        byte[] shown = backEnd.viewPin(device, plasticId);
        boolean same = MessageDigest.isEqual(shown, COMMAND_PIN.getBytes(StandardCharsets.US_ASCII));
        wipe(shown);
        if (!same) {
            throw new IllegalStateException("the PIN viewed is not the PIN set");
        }
    }

    /** Checks clients/vectors.json: lists of flat objects, each on one line. */
    private static final class Vectors {
        private final String text;
        private final CardPin device;
        private int checked;

        Vectors(String file) throws IOException, GeneralSecurityException {
            text = new String(Files.readAllBytes(Paths.get(file)), StandardCharsets.UTF_8);
            KeyFactory rsa = KeyFactory.getInstance("RSA");
            byte[] pkcs8 = Base64.getDecoder().decode(BackEnd.member(text, "rsa_private_key"));
            RSAPrivateCrtKey key = (RSAPrivateCrtKey) rsa.generatePrivate(new PKCS8EncodedKeySpec(pkcs8));
            RSAPublicKeySpec spki = new RSAPublicKeySpec(key.getModulus(), key.getPublicExponent());
            device = new CardPin(new KeyPair(rsa.generatePublic(spki), key));
        }

        /** The number of vectors, all of which the device passed. */
        int check() throws IOException, GeneralSecurityException {
            equal(device.publicKey(), BackEnd.member(text, "rsa_public_key"));
            for (Map<String, String> vector : list("iso1")) {
                equal(hex(formatOne(pin(vector), filler(vector))), vector.get("block"));
                equal(text(digitsOf(bytes(vector.get("block")))), vector.get("pin"));
            }
            for (Map<String, String> vector : list("iso1_refused")) {
                try {
                    digitsOf(bytes(vector.get("block")));
                    throw new IllegalStateException("not refused: " + vector);
                } catch (BlockException refused) {
                    continue;
                }
            }
            for (Map<String, String> vector : list("tdes_ecb")) {
                byte[] key = bytes(vector.get("key"));
                equal(hex(tripleDes(Cipher.ENCRYPT_MODE, key, bytes(vector.get("clear")))), vector.get("encrypted"));
                equal(hex(tripleDes(Cipher.DECRYPT_MODE, key, bytes(vector.get("encrypted")))), vector.get("clear"));
            }
            for (Map<String, String> vector : list("kcv")) {
                byte[] encrypted = tripleDes(Cipher.ENCRYPT_MODE, bytes(vector.get("key")), new byte[8]);
                equal(hex(Arrays.copyOf(encrypted, 3)), vector.get("kcv"));
            }
            for (Map<String, String> vector : list("oaep")) {
                equal(hex(device.decryptTzpk(vector.get("tzpk"))), vector.get("key"));
            }
            for (Map<String, String> vector : list("oaep_refused")) {
                try {
                    device.encryptPin(vector.get("tzpk"), COMMAND_PIN.getBytes(StandardCharsets.US_ASCII));
                    throw new IllegalStateException("not refused: " + vector);
                } catch (TzpkException refused) {
                    equal(String.valueOf(refused.getMessage().contains("MGF1")), "true");
                }
            }
            for (Map<String, String> vector : list("set")) {
                byte[] key = device.decryptTzpk(vector.get("tzpk"));
                byte[] block = tripleDes(Cipher.ENCRYPT_MODE, key, formatOne(pin(vector), filler(vector)));
                equal(Base64.getEncoder().encodeToString(block), vector.get("pinBlock"));
                equal(text(device.decryptPin(vector.get("tzpk"), vector.get("pinBlock"))), vector.get("pin"));
                byte[] pin = pin(vector);
                String again = device.encryptPin(vector.get("tzpk"), pin);
                equal(hex(pin), hex(new byte[pin.length]));
                equal(text(device.decryptPin(vector.get("tzpk"), again)), vector.get("pin"));
            }
            return checked;
        }

        private List<Map<String, String>> list(String kind) {
            List<Map<String, String>> vectors = new ArrayList<>();
            Matcher list = Pattern.compile("\"" + kind + "\": \\[\\n(.*?)\\n \\]", Pattern.DOTALL).matcher(text);
            if (!list.find()) {
                throw new IllegalStateException("the file has no vectors " + kind);
            }
            for (String line : list.group(1).split("\\n")) {
                Map<String, String> vector = new HashMap<>();
                Matcher member = Pattern.compile("\"(\\w+)\": \"([^\"]*)\"").matcher(line);
                while (member.find()) {
                    vector.put(member.group(1), member.group(2));
                }
                vectors.add(vector);
            }
            checked += vectors.size();
            return vectors;
        }

        private static void equal(String found, String expected) {
            if (!found.equals(expected)) {
                throw new IllegalStateException(found + " instead of " + expected);
            }
        }

        private static byte[] pin(Map<String, String> vector) {
            return vector.get("pin").getBytes(StandardCharsets.US_ASCII);
        }

        private static byte[] filler(Map<String, String> vector) {
            return bytes(("0000000000000000" + vector.get("filler")).substring(vector.get("filler").length()));
        }

        private static String text(byte[] digits) {
            return new String(digits, StandardCharsets.US_ASCII);
        }
    }

    static String hex(byte[] bytes) {
        return bytes.length == 0 ? "" : String.format("%0" + 2 * bytes.length + "X", new BigInteger(1, bytes));
    }

    static byte[] bytes(String hex) {
        byte[] bytes = new byte[hex.length() / 2];
        for (int i = 0; i < bytes.length; i++) {
            bytes[i] = (byte) Integer.parseInt(hex.substring(2 * i, 2 * i + 2), 16);
        }
        return bytes;
    }
}
