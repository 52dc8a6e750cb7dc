import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.OutputStream;
import java.net.InetSocketAddress;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicInteger;

/** The JDK's HTTP/1.1 server, with the same paths as the Go peer's server. Usage: Server PORT CONTROL-PORT. */
public class Server {
    private static final byte[] PART = "0123456789abcdef".repeat(4096).getBytes();
    private static final Map<String, String> SEEN = new ConcurrentHashMap<>();
    private static final AtomicInteger OPEN = new AtomicInteger();

    public static void main(String[] arguments) throws IOException {
        serve(new InetSocketAddress(Integer.parseInt(arguments[0])), Server::answer);
        serve(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[1])), Server::tell);
    }

    private interface Handler {
        void handle(HttpExchange exchange) throws Exception;
    }

    private static void serve(InetSocketAddress address, Handler handler) throws IOException {
        var server = HttpServer.create(address, 0);
        server.setExecutor(Executors.newCachedThreadPool());
        server.createContext("/", exchange -> {
            try (exchange) {
                handler.handle(exchange);
            } catch (Exception e) {
                throw new IOException(e);
            }
        });
        server.start();
    }

    private static void tell(HttpExchange exchange) throws Exception {
        String query = exchange.getRequestURI().getQuery();
        say(exchange, query == null ? OPEN.toString() : SEEN.getOrDefault(query.substring("id=".length()), "none"));
    }

    private static void answer(HttpExchange exchange) throws Exception {
        String id = String.valueOf(exchange.getRequestHeaders().getFirst("x-id"));
        OPEN.incrementAndGet();
        SEEN.put(id, "open");
        try {
            SEEN.put(id, handle(exchange));
        } catch (IOException e) {
            SEEN.put(id, "cut 0");
            throw e;
        } finally {
            OPEN.decrementAndGet();
        }
    }

    /** Serves the request, and returns its state for the control port. */
    private static String handle(HttpExchange exchange) throws Exception {
        String query = String.valueOf(exchange.getRequestURI().getQuery());
        switch (exchange.getRequestURI().getPath()) {
            case "/plain" -> say(exchange, "plain");
            case "/download" -> {
                exchange.sendResponseHeaders(200, 0);
                pattern(exchange.getResponseBody(), Integer.parseInt(query.substring("n=".length())));
                exchange.getResponseBody().close();
            }
            case "/upload" -> {
                String body = read(exchange, OutputStream.nullOutputStream());
                say(exchange, body);
                return "complete " + body;
            }
            case "/echo" -> {
                exchange.sendResponseHeaders(200, 0);
                String body = read(exchange, exchange.getResponseBody());
                exchange.getResponseBody().close();
                return "complete " + body;
            }
            case "/early" -> {
                exchange.sendResponseHeaders(200, 5);
                exchange.getResponseBody().write("early".getBytes());
                exchange.getResponseBody().flush();
                return "complete " + read(exchange, OutputStream.nullOutputStream());
            }
            case "/refuse" -> {
                exchange.getResponseHeaders().set("connection", "close");
                exchange.sendResponseHeaders(413, -1);
                return "refused";
            }
            case "/cut" -> {
                if (query.contains("at=upload")) {
                    exchange.getRequestBody().readNBytes(1000);
                } else if (!query.contains("at=start")) {
                    exchange.sendResponseHeaders(200, 0);
                    pattern(exchange.getResponseBody(), query.contains("at=body") ? 1000 : query.contains("at=end") ? 100_000 : 0);
                    exchange.getResponseBody().flush();
                    Thread.sleep(20);
                }
                throw new IOException("cut");
            }
            default -> exchange.sendResponseHeaders(404, -1);
        }
        return "complete";
    }

    private static void say(HttpExchange exchange, String text) throws IOException {
        exchange.sendResponseHeaders(200, text.length());
        exchange.getResponseBody().write(text.getBytes());
    }

    private static void pattern(OutputStream out, int count) throws IOException {
        for (int rest = count; rest > 0; rest -= PART.length) {
            out.write(PART, 0, Math.min(rest, PART.length));
        }
    }

    private static String read(HttpExchange exchange, OutputStream copy) throws Exception {
        var hash = MessageDigest.getInstance("SHA-256");
        var part = new byte[65536];
        long length = 0;
        for (int count; (count = exchange.getRequestBody().read(part)) >= 0; length += count) {
            hash.update(part, 0, count);
            copy.write(part, 0, count);
            copy.flush();
        }
        return length + " " + HexFormat.of().formatHex(hash.digest()).substring(0, 16);
    }
}
