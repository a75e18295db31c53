// What a program written for KurrentDB does, with the official client for Java. Argument: the connection string. Prints `done`.

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;

import io.kurrent.dbclient.*;

public class Kurrent {
    interface Call {
        CompletableFuture<?> make() throws Exception;
    }

    static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    static <T extends Throwable> T raises(Class<T> kind, Call call) throws Exception {
        try {
            call.make().get();
        } catch (ExecutionException error) {
            check(kind.isInstance(error.getCause()), "not " + kind.getSimpleName() + " but " + error.getCause());
            return kind.cast(error.getCause());
        }
        throw new AssertionError(kind.getSimpleName() + " was not raised");
    }

    static EventData order(String kind, int n) {
        byte[] metadata = "{\"by\": \"java\"}".getBytes(StandardCharsets.UTF_8);
        return EventDataBuilder.json(kind, ("{\"n\": " + n + "}").getBytes(StandardCharsets.UTF_8)).metadataAsBytes(metadata).build();
    }

    static AppendToStreamOptions at(StreamState state) {
        return AppendToStreamOptions.get().streamState(state);
    }

    static List<UUID> ids(ReadResult result) {
        return result.getEvents().stream().map(each -> each.getEvent().getEventId()).toList();
    }

    static <T> T next(BlockingQueue<T> queue) throws InterruptedException {
        T found = queue.poll(20, TimeUnit.SECONDS);
        check(found != null, "nothing came");
        return found;
    }

    public static void main(String[] arguments) throws Exception {
        KurrentDBClientSettings settings = KurrentDBConnectionString.parseOrThrow(arguments[0]);
        KurrentDBClient client = KurrentDBClient.create(settings);
        KurrentDBPersistentSubscriptionsClient persistent = KurrentDBPersistentSubscriptionsClient.create(settings);
        String kind = "Order" + UUID.randomUUID().toString().replace("-", "");
        String stream = kind + "-1";
        List<EventData> events = IntStream.rangeClosed(1, 3).mapToObj(n -> order(kind, n)).toList();
        List<UUID> ids = events.stream().map(EventData::getEventId).toList();
        ReadStreamOptions forwards = ReadStreamOptions.get().forwards().fromStart();

        raises(StreamNotFoundException.class, () -> client.readStream(stream, forwards));
        WriteResult first = client.appendToStream(stream, at(StreamState.noStream()), events.get(0)).get();
        check(first.getNextExpectedRevision().toRawLong() == 0, "revision of the first");
        client.appendToStream(stream, at(StreamState.streamRevision(0)), events.get(1), events.get(2)).get();
        for (StreamState state : List.of(StreamState.noStream(), StreamState.streamRevision(1), StreamState.streamRevision(7))) {
            WrongExpectedVersionException wrong =
                raises(WrongExpectedVersionException.class, () -> client.appendToStream(stream, at(state), order(kind, 9)));
            // the client itself says revision 0 where no stream was expected
            boolean expectedIsTold = wrong.getExpectedState().equals(state) || state.equals(StreamState.noStream());
            check(expectedIsTold && wrong.getActualState().toRawLong() == 2, "what " + wrong + " says");
        }

        ReadResult read = client.readStream(stream, forwards).get();
        check(ids(read).equals(ids), "ids of what is read");
        RecordedEvent recorded = read.getEvents().get(0).getEvent();
        check(Arrays.equals(recorded.getEventData(), events.get(0).getEventData()), "data");
        check(Arrays.equals(recorded.getUserMetadata(), events.get(0).getUserMetadata()), "metadata");
        check(recorded.getPosition().equals(first.getLogPosition()), "position");
        ReadResult last = client.readStream(stream, ReadStreamOptions.get().backwards().fromEnd().maxCount(1)).get();
        check(last.getEvents().get(0).getEvent().getRevision() == 2, "the last");
        check(ids(client.readStream("$ce-" + kind, forwards.resolveLinkTos()).get()).equals(ids), "links");
        check(client.readAll(ReadAllOptions.get().backwards().fromEnd().maxCount(3)).get().getEvents().size() == 3, "$all");

        byte[] raw = new byte[256];
        IntStream.range(0, 256).forEach(n -> raw[n] = (byte) n);
        client.appendToStream("any name at all " + kind, at(StreamState.any()), EventDataBuilder.binary("raw", raw).build()).get();
        ReadResult bytes = client.readStream("any name at all " + kind, forwards).get();
        check(Arrays.equals(bytes.getEvents().get(0).getEvent().getEventData(), raw), "bytes");

        BlockingQueue<UUID> seen = new LinkedBlockingQueue<>();
        SubscriptionFilter filter = SubscriptionFilter.newBuilder().addEventTypePrefix(kind).build();
        Subscription subscription = client.subscribeToAll(
            new SubscriptionListener() {
                @Override
                public void onEvent(Subscription subscription, ResolvedEvent event) {
                    seen.add(event.getEvent().getEventId());
                }
            },
            SubscribeToAllOptions.get().fromStart().filter(filter)).get();
        for (UUID id : ids) {
            check(next(seen).equals(id), "order of a subscription");
        }
        EventData live = order(kind, 4);
        client.appendToStream(stream, at(StreamState.streamRevision(2)), live).get();
        check(next(seen).equals(live.getEventId()), "a live event");
        subscription.stop();

        CreatePersistentSubscriptionToStreamOptions created = CreatePersistentSubscriptionToStreamOptions.get().fromStart();
        persistent.createToStream(stream, kind, created).get();
        BlockingQueue<String> given = new LinkedBlockingQueue<>();
        PersistentSubscription consumer = persistent.subscribeToStream(stream, kind, new PersistentSubscriptionListener() {
            @Override
            public void onEvent(PersistentSubscription subscription, int retries, ResolvedEvent event) {
                given.add(event.getEvent().getRevision() + "/" + retries);
                if (event.getEvent().getRevision() == 1 && retries == 0) {
                    subscription.nack(NackAction.Retry, "once more", event);
                } else {
                    subscription.ack(event);
                }
            }
        }).get();
        List<String> expected = new ArrayList<>(List.of("0/0", "1/0", "2/0", "3/0", "1/1"));
        for (int n = 0; n < 5; n++) {
            String got = next(given);
            check(expected.remove(got), got + " was not expected");
        }
        PersistentSubscriptionToStreamInfo info = persistent.getInfoToStream(stream, kind).get().orElseThrow();
        check(info.getEventSource().equals(stream) && info.getGroupName().equals(kind), "info");
        consumer.stop();
        persistent.deleteToStream(stream, kind).get();
        check(persistent.getInfoToStream(stream, kind).get().isEmpty(), "a group that is deleted");

        StreamMetadata metadata = new StreamMetadata();
        metadata.setMaxCount(1L);
        client.setStreamMetadata(stream, metadata).get();
        check(client.getStreamMetadata(stream).get().getMaxCount() == 1, "metadata");
        check(client.readStream(stream, forwards).get().getEvents().size() == 1, "$maxCount");
        client.deleteStream(stream).get();
        raises(StreamNotFoundException.class, () -> client.readStream(stream, forwards));
        client.tombstoneStream(stream).get();
        raises(StreamDeletedException.class, () -> client.appendToStream(stream, at(StreamState.any()), order(kind, 5)));
        client.shutdown().get();
        persistent.shutdown().get();
        System.out.println("done");
        System.exit(0);
    }
}
