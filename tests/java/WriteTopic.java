// Registers a schema at the registry, encodes a value with Avro's own Java library, and writes it to a topic with Kafka's own Java
// client. It knows nothing of eventspine but what docs/topics.md says.
// Arguments: bootstrap servers, registry URL, topic, subject, schema, headers (JSON), value (Avro's JSON).

import java.io.ByteArrayOutputStream;
import java.io.DataOutputStream;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.util.Map;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.avro.io.EncoderFactory;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class WriteTopic {
    public static void main(String[] arguments) throws Exception {
        ObjectMapper json = new ObjectMapper();
        String subject = URLEncoder.encode(arguments[3], StandardCharsets.UTF_8);
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[1] + "/subjects/" + subject + "/versions"))
                .header("Content-Type", "application/vnd.schemaregistry.v1+json")
                .POST(BodyPublishers.ofString(json.writeValueAsString(Map.of("schema", arguments[4]))))
                .build();
        HttpResponse<String> answer = HttpClient.newHttpClient().send(request, BodyHandlers.ofString());
        if (answer.statusCode() != 200) {
            throw new IllegalStateException(answer.statusCode() + " " + answer.body());
        }
        Schema schema = new Schema.Parser().parse(arguments[4]);
        ByteArrayOutputStream value = new ByteArrayOutputStream();
        DataOutputStream header = new DataOutputStream(value);
        header.writeByte(0);
        header.writeInt(json.readTree(answer.body()).get("id").asInt());
        BinaryEncoder encoder = EncoderFactory.get().binaryEncoder(value, null);
        Object data = new GenericDatumReader<>(schema).read(null, DecoderFactory.get().jsonDecoder(schema, arguments[6]));
        new GenericDatumWriter<>(schema).write(data, encoder);
        encoder.flush();

        JsonNode headers = json.readTree(arguments[5]);
        byte[] key = headers.get("ce_subject").asText().getBytes(StandardCharsets.UTF_8);
        ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(arguments[2], key, value.toByteArray());
        headers.properties().forEach(each ->
                record.headers().add(each.getKey(), each.getValue().asText().getBytes(StandardCharsets.UTF_8)));
        Map<String, Object> settings = Map.of("bootstrap.servers", arguments[0], "acks", "all");
        try (KafkaProducer<byte[], byte[]> producer =
                new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer())) {
            System.out.println(producer.send(record).get().partition());
        }
    }
}
