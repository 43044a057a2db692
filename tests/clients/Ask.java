// Asks with the JDK's HttpClient, one URL after the other: java Ask.java VERSION SIZE FRAMING URL...
// VERSION is HTTP_1_1, or HTTP_2, the client's own default, with which it asks for h2c in its first request. SIZE is that of the
// body, 0 for a GET; FRAMING is length or chunked. Prints a line for each URL: its status, or why there is none.

import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;

public class Ask {
    public static void main(String[] words) {
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.valueOf(words[0])).build();
        byte[] body = new byte[Integer.parseInt(words[1])];
        boolean chunked = words[2].equals("chunked");
        for (int i = 3; i < words.length; i++) {
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(words[i])).timeout(Duration.ofSeconds(60));
            if (body.length > 0) {
                request.POST(chunked ? BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body)) : BodyPublishers.ofByteArray(body));
            }
            try {
                System.out.println(client.send(request.build(), BodyHandlers.ofByteArray()).statusCode());
            } catch (Exception error) {
                System.out.println(error);
            }
        }
        System.exit(0);
    }
}
