package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// A server with grpc-go's defaults, including the enforcement of PING intervals.
func grpcServe(port int) error {
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(server, interop.NewTestServer())
	return server.Serve(listener)
}

// The interoperability tests of the gRPC project. A failing test ends the process.
var grpcCases = map[string]func(context.Context, testgrpc.TestServiceClient){
	"empty_unary":                 func(c context.Context, t testgrpc.TestServiceClient) { interop.DoEmptyUnaryCall(c, t) },
	"large_unary":                 func(c context.Context, t testgrpc.TestServiceClient) { interop.DoLargeUnaryCall(c, t) },
	"client_streaming":            func(c context.Context, t testgrpc.TestServiceClient) { interop.DoClientStreaming(c, t) },
	"server_streaming":            func(c context.Context, t testgrpc.TestServiceClient) { interop.DoServerStreaming(c, t) },
	"ping_pong":                   func(c context.Context, t testgrpc.TestServiceClient) { interop.DoPingPong(c, t) },
	"empty_stream":                func(c context.Context, t testgrpc.TestServiceClient) { interop.DoEmptyStream(c, t) },
	"timeout_on_sleeping_server":  func(c context.Context, t testgrpc.TestServiceClient) { interop.DoTimeoutOnSleepingServer(c, t) },
	"cancel_after_begin":          func(c context.Context, t testgrpc.TestServiceClient) { interop.DoCancelAfterBegin(c, t) },
	"cancel_after_first_response": func(c context.Context, t testgrpc.TestServiceClient) { interop.DoCancelAfterFirstResponse(c, t) },
	"custom_metadata":             func(c context.Context, t testgrpc.TestServiceClient) { interop.DoCustomMetadata(c, t) },
	"status_code_and_message":     func(c context.Context, t testgrpc.TestServiceClient) { interop.DoStatusCodeAndMessage(c, t) },
	"special_status_message":      func(c context.Context, t testgrpc.TestServiceClient) { interop.DoSpecialStatusMessage(c, t) },
}

func grpcCall(address string, cases []string) error {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	client := testgrpc.NewTestServiceClient(connection)
	ctx := context.Background()
	for _, name := range cases {
		switch name {
		case "unimplemented_method":
			interop.DoUnimplementedMethod(ctx, connection)
		case "unimplemented_service":
			interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(connection))
		case "silent_stream":
			err = silentStream(ctx, client)
		default:
			grpcCases[name](ctx, client)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fmt.Println(name)
	}
	return nil
}

// A stream that is silent for 75 s between two messages of each side.
func silentStream(ctx context.Context, client testgrpc.TestServiceClient) error {
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	begun := time.Now()
	for round := range 2 {
		if round > 0 {
			time.Sleep(75 * time.Second)
		}
		message := &testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: 10}}}
		if err := stream.Send(message); err != nil {
			return fmt.Errorf("sending after %v: %w", time.Since(begun).Round(time.Second), err)
		}
		if _, err := stream.Recv(); err != nil {
			return fmt.Errorf("receiving after %v: %w", time.Since(begun).Round(time.Second), err)
		}
	}
	return stream.CloseSend()
}
