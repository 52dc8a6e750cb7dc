import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Scanner;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

/** A java.net.http client that reads the commands of proxy/tests/peers/matrix.rs. Usage: Client h1|h2. */
public class Client {
    private static final byte[] PATTERN = "0123456789abcdef".getBytes();

    /** The pattern. Reading blocks at `stop`. */
    private static final class Body extends InputStream {
        private final long size;
        private final long stop;
        private long at = 0;

        Body(long size, long stop) {
            this.size = size;
            this.stop = stop;
        }

        @Override
        public int read() {
            throw new UnsupportedOperationException("one octet at a time");
        }

        @Override
        public int read(byte[] into, int offset, int length) {
            if (at >= stop) {
                sleep(60_000);
            }
            if (at >= size) {
                return -1;
            }
            int count = (int) Math.min(length, Math.min(size, stop) - at);
            for (int place = 0; place < count; place++) {
                into[offset + place] = PATTERN[(int) ((at + place) % PATTERN.length)];
            }
            at += count;
            return count;
        }
    }

    private static void sleep(long milliseconds) {
        try {
            Thread.sleep(milliseconds);
        } catch (InterruptedException e) {
            throw new IllegalStateException(e);
        }
    }

    public static void main(String[] arguments) {
        var version = arguments[0].equals("h2") ? HttpClient.Version.HTTP_2 : HttpClient.Version.HTTP_1_1;
        var client = HttpClient.newBuilder().version(version).build();
        for (var lines = new Scanner(System.in); lines.hasNextLine(); ) {
            System.out.println(command(client, lines.nextLine().split(" ")));
        }
        System.exit(0);
    }

    private static String command(HttpClient client, String[] words) {
        var uri = URI.create("http://" + words[1] + words[3]);
        var request = HttpRequest.newBuilder(uri).header("x-id", words[2]).timeout(Duration.ofSeconds(6));
        List<String> options = words.length > 5 ? Arrays.asList(words[5].split(",")) : List.of();
        if (words[0].equals("post")) {
            long size = Long.parseLong(words[4]);
            long stop = options.contains("leave-head") ? 0 : options.contains("leave-body") ? size / 2 : options.contains("leave-end") ? size : size + 1;
            var body = BodyPublishers.ofInputStream(() -> new Body(size, stop));
            request.POST(options.contains("length") ? BodyPublishers.fromPublisher(body, size) : body);
            request.expectContinue(options.contains("expect"));
        }
        boolean leaves = words[0].equals("leave") || options.stream().anyMatch(option -> option.startsWith("leave"));
        try {
            if (words[0].equals("leave")) {
                var response = client.send(request.build(), BodyHandlers.ofInputStream());
                response.body().read(new byte[1000]);
                response.body().close();
                return told(response.statusCode(), "", "", 0, "left");
            }
            CompletableFuture<HttpResponse<byte[]>> future = client.sendAsync(request.build(), BodyHandlers.ofByteArray());
            if (leaves) {
                sleep(150);
                future.cancel(true);
                return told(0, "", "", 0, "left");
            }
            var response = future.get(6, TimeUnit.SECONDS);
            byte[] body = response.body();
            String sum = java.util.HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(body)).substring(0, 16);
            return told(response.statusCode(), sum, body.length <= 200 ? plain(new String(body)) : "", body.length, "");
        } catch (Exception e) {
            return told(0, "", "", 0, plain(e.toString()));
        }
    }

    /** Replaces characters that JSON would escape. */
    private static String plain(String text) {
        return text.replaceAll("[^ -~]|[\"\\\\]", " ");
    }

    private static String told(int status, String sum, String text, long length, String error) {
        return String.format("{\"status\":%d,\"sum\":\"%s\",\"text\":\"%s\",\"length\":%d,\"error\":\"%s\"}", status, sum, text, length, error);
    }
}
